//! The JSON schemas of the files, for editors.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::Value;

use crate::identifier;
use crate::raw::{RawInstance, RawNetworks};

/// The schema of `networks.yaml`.
pub fn networks() -> Value {
    let mut schema = of::<RawNetworks>();
    if let Some(networks) = schema.pointer_mut("/properties/networks") {
        networks["propertyNames"] = serde_json::json!({ "pattern": identifier::PATTERN });
    }
    schema
}

/// The schema of `lima.yaml`, as far as it is about networks.
pub fn instance() -> Value {
    let mut schema = of::<RawInstance>();
    if let Some(schema) = schema.as_object_mut() {
        // The rest of the file is not vmlan's to judge.
        schema.remove("additionalProperties");
    }
    schema
}

fn of<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let schema: Schema = generator.into_root_schema_for::<T>();
    schema.to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_yaml() {
        insta::assert_json_snapshot!(networks());
    }

    #[test]
    fn lima_yaml() {
        insta::assert_json_snapshot!(instance());
    }
}
