//! How bad a wire is, as text: `loss=5,reorder=25,delay=20,seed=7`.

use std::str::FromStr;
use std::time::Duration;

/// What happens to frames, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Percent of the frames that are lost.
    pub loss: f64,
    /// Percent that are overtaken by some of those that follow.
    pub reorder: f64,
    /// Percent that arrive twice.
    pub duplicate: f64,
    /// Percent that have one bit flipped, in the IP packet.
    pub corrupt: f64,
    /// How long every frame is on its way.
    pub delay: Duration,
    pub seed: u64,
}

/// What is wrong with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    #[error(
        "{0:?} is not one of loss=PERCENT, reorder=PERCENT, duplicate=PERCENT, corrupt=PERCENT, \
         delay=MILLISECONDS, seed=NUMBER"
    )]
    Unknown(String),
    #[error("{0:?}: a percentage is a number from 0 to 100")]
    Percent(String),
    #[error("{0:?}: a delay is a number of milliseconds from 0 to 60000")]
    Delay(String),
    #[error("{0:?}: a seed is a whole number")]
    Seed(String),
}

impl FromStr for Faults {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut faults = Self { seed: 1, ..Self::default() };
        for part in text.split(',') {
            let (key, value) =
                part.split_once('=').ok_or_else(|| FaultError::Unknown(part.to_owned()))?;
            let percent =
                || number(value, 100.0).ok_or_else(|| FaultError::Percent(part.to_owned()));
            match key {
                "loss" => faults.loss = percent()?,
                "reorder" => faults.reorder = percent()?,
                "duplicate" => faults.duplicate = percent()?,
                "corrupt" => faults.corrupt = percent()?,
                "delay" => {
                    let ms = number(value, 60_000.0)
                        .ok_or_else(|| FaultError::Delay(part.to_owned()))?;
                    faults.delay = Duration::from_secs_f64(ms / 1000.0);
                }
                "seed" => {
                    faults.seed = value.parse().map_err(|_| FaultError::Seed(part.to_owned()))?;
                }
                _ => return Err(FaultError::Unknown(part.to_owned())),
            }
        }
        Ok(faults)
    }
}

fn number(text: &str, max: f64) -> Option<f64> {
    text.parse().ok().filter(|n| (0.0..=max).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_are_read() {
        let faults: Faults =
            "loss=5,reorder=25,duplicate=0.5,corrupt=1,delay=20,seed=7".parse().unwrap();
        let expected = Faults {
            loss: 5.0,
            reorder: 25.0,
            duplicate: 0.5,
            corrupt: 1.0,
            delay: Duration::from_millis(20),
            seed: 7,
        };
        assert_eq!(faults, expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, error) in [
            ("loss=5,slow", FaultError::Unknown("slow".into())),
            ("speed=5", FaultError::Unknown("speed=5".into())),
            ("", FaultError::Unknown(String::new())),
            ("loss=101", FaultError::Percent("loss=101".into())),
            ("corrupt=NaN", FaultError::Percent("corrupt=NaN".into())),
            ("delay=-1", FaultError::Delay("delay=-1".into())),
            ("seed=x", FaultError::Seed("seed=x".into())),
        ] {
            assert_eq!(text.parse::<Faults>(), Err(error));
        }
    }
}
