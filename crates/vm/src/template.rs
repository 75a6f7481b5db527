//! The configurations that come with vmlan, one for each common image.

/// The template of that name.
pub fn named(name: &str) -> Option<&'static str> {
    TEMPLATES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// All names, each of a template.
pub fn names() -> impl Iterator<Item = &'static str> {
    TEMPLATES.iter().map(|(name, _)| *name)
}

const DEBIAN_13: &str = include_str!("../templates/debian-13.yaml");
const UBUNTU_24_04: &str = include_str!("../templates/ubuntu-24.04.yaml");

const TEMPLATES: &[(&str, &str)] = &[
    ("default", UBUNTU_24_04),
    ("alpine", include_str!("../templates/alpine.yaml")),
    ("debian", DEBIAN_13),
    ("debian-12", include_str!("../templates/debian-12.yaml")),
    ("debian-13", DEBIAN_13),
    ("fedora", include_str!("../templates/fedora.yaml")),
    ("ubuntu", UBUNTU_24_04),
    ("ubuntu-24.04", UBUNTU_24_04),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vmlan_config::Source;
    use vmlan_config::instance::InstanceConfig;

    use super::*;

    #[test]
    fn every_template_is_understood_and_has_an_image_for_each_machine() {
        for name in names() {
            for arch in ["x86_64", "aarch64"] {
                let text = format!("{}arch: {arch}\n", named(name).unwrap());
                let source = Source::new(Path::new(name), text);
                let read = InstanceConfig::parse(&source, Path::new("/tmp/x")).unwrap();
                assert!(read.warnings.is_none(), "{name}");
                assert_eq!(read.config.images.len(), 1, "{name}");
                let image = &read.config.images[0].disk;
                let (debians, own) = match arch {
                    "x86_64" => ("amd64", "x86_64"),
                    _ => ("arm64", "aarch64"),
                };
                assert!(image.location.contains(debians) || image.location.contains(own), "{name}");
                assert!(image.location.starts_with("https://"), "{name}");
                let is_disk = [".qcow2", ".img"].iter().any(|end| image.location.ends_with(end));
                assert!(is_disk, "{name}");
                // Only what never changes at its place can be told by a digest.
                let changes =
                    ["/latest/", "/release/"].iter().any(|part| image.location.contains(part));
                assert!(!(changes && image.digest.is_some()), "{name}");
            }
        }
        assert!(named("default").is_some() && named("nonsense").is_none());
    }
}
