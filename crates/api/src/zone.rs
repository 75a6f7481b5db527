//! Zones of names, as gvisor-tap-vsock's API has them.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize, Serializer};

/// A zone: names that end alike, which the network answers for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
pub struct Zone {
    #[serde(alias = "name")]
    pub name: String,
    #[serde(default, alias = "records", deserialize_with = "or_none")]
    pub records: Vec<Record>,
    /// What names without a record stand for; empty if there are no such names.
    #[serde(rename = "DefaultIP", default, alias = "defaultIP", alias = "defaultIp")]
    #[serde(with = "address")]
    #[schemars(with = "Option<String>")]
    pub default_ip: Option<IpAddr>,
}

/// A name of a zone, without the zone's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "PascalCase")]
pub struct Record {
    #[serde(default, alias = "name")]
    pub name: String,
    #[serde(rename = "IP", default, alias = "ip")]
    #[serde(with = "address")]
    #[schemars(with = "Option<String>")]
    pub ip: Option<IpAddr>,
    /// Names by a pattern, which this network does not have.
    #[serde(default, alias = "regexp", skip_serializing_if = "Option::is_none")]
    pub regexp: Option<String>,
}

/// Go writes an empty list as null.
fn or_none<'de, D: Deserializer<'de>>(json: D) -> Result<Vec<Record>, D::Error> {
    Option::deserialize(json).map(Option::unwrap_or_default)
}

/// Go writes an address that is not there as an empty string.
mod address {
    use super::*;

    pub(super) fn serialize<S: Serializer>(
        ip: &Option<IpAddr>,
        json: S,
    ) -> Result<S::Ok, S::Error> {
        ip.map(|ip| ip.to_string()).unwrap_or_default().serialize(json)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        json: D,
    ) -> Result<Option<IpAddr>, D::Error> {
        let text: Option<String> = Option::deserialize(json)?;
        let text = text.filter(|text| !text.is_empty());
        let wrong = |text: &str| D::Error::custom(format!("`{text}` is not an IP address"));
        text.map(|text| text.parse().map_err(|_| wrong(&text))).transpose()
    }
}

impl Zone {
    /// As the resolver has it, or why it cannot.
    pub fn resolved(self) -> Result<vmlan_dns::Zone, String> {
        let records = self.records.into_iter().map(|record| match record.regexp {
            Some(pattern) => Err(format!(
                "`{pattern}`: names by a pattern are not to be had; give each a record, or the \
                 zone a DefaultIP"
            )),
            None => Ok(vmlan_dns::ZoneRecord { name: record.name, address: record.ip }),
        });
        let records = records.collect::<Result<_, _>>()?;
        let zone = vmlan_dns::Zone { name: self.name, records, default: self.default_ip };
        // Said here, where the request is refused with it.
        let checked = vmlan_dns::Names::default().add_zone(zone.clone());
        checked.map_err(|e| e.to_string()).map(|()| zone)
    }
}

impl From<&vmlan_dns::Zone> for Zone {
    fn from(zone: &vmlan_dns::Zone) -> Self {
        let record = |record: &vmlan_dns::ZoneRecord| Record {
            name: record.name.clone(),
            ip: record.address,
            regexp: None,
        };
        let records = zone.records.iter().map(record).collect();
        Self { name: zone.name.clone(), records, default_ip: zone.default }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_read_as_go_reads_them() {
        let text = r#"{"Name":"a.test.","Records":[{"Name":"b","IP":"10.0.0.1"}],"DefaultIP":""}"#;
        let zone: Zone = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&zone).unwrap(), text);
        let small =
            r#"{"name":"a.test.","records":[{"name":"b","ip":"10.0.0.1"}],"defaultIP":null}"#;
        assert_eq!(serde_json::from_str::<Zone>(small).unwrap(), zone);
        let none: Zone = serde_json::from_str(r#"{"Name":"x","Records":null}"#).unwrap();
        assert_eq!(none, Zone { name: "x".into(), ..Zone::default() });
        assert_eq!(Zone::from(&zone.clone().resolved().unwrap()), zone);
    }

    #[test]
    fn what_cannot_be_answered_is_refused() {
        let of = |text: &str| serde_json::from_str::<Zone>(text).unwrap().resolved().unwrap_err();
        assert!(of(r#"{"Name":"a..b"}"#).contains("a..b"));
        let pattern = r#"{"Name":"test","Records":[{"Regexp":"x.*","IP":"10.0.0.1"}]}"#;
        assert!(of(pattern).contains("`x.*`"));
        assert!(serde_json::from_str::<Zone>(r#"{"Name":"x","DefaultIP":"10"}"#).is_err());
        assert!(serde_json::from_str::<Zone>("{}").is_err());
    }
}
