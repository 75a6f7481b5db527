//! Sizes as people write them: `4GiB`, `512M`, `100GB`.

/// The bytes of a size. Whole numbers with a unit: of thousands (`kB`, `MB`), of 1024s (`KiB`, `K`,
/// `MiB`, `M`), or none for bytes.
pub(super) fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let bytes = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    if fraction.is_empty() {
        return Some(bytes);
    }
    let scale = 10u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / u128::from(scale);
    bytes.checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, want) in [
            ("4GiB", Some(4 << 30)),
            ("1.5 GiB", Some(3 << 29)),
            ("512M", Some(512 << 20)),
            ("100GB", Some(100_000_000_000)),
            ("1024", Some(1024)),
            ("0.5kB", Some(500)),
            ("", None),
            ("GiB", None),
            ("4 gallons", None),
            ("-1", None),
            ("1.2.3G", None),
            ("99999999999999TiB", None),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
