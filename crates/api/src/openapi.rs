//! The API as an OpenAPI 3.1 document, made from the table of its paths and from the types that go
//! over the wire.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::action::{Answer, ROUTES, Route};

/// The document.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in ROUTES {
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(route.method.to_lowercase(), operation(route, &mut generator));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "vmlan network",
            "description": "What the daemon of one network answers, on its UNIX socket. Each request \
                            is a connection of its own.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "http://vmlan" }],
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let id = route.path.replace(['/', '.'], "_");
    let mut operation = json!({
        "operationId": format!("{}{id}", route.method.to_lowercase()),
        "summary": route.summary,
        "responses": {
            "200": answer(route.answer, generator),
            "default": { "description": "Why not", "content": { "text/plain": {} } },
        },
    });
    if !route.query.is_empty() {
        let parameter = |(name, required, description): &(&str, bool, &str)| {
            json!({
                "name": name, "in": "query", "required": required, "description": description,
                "schema": { "type": "string" },
            })
        };
        operation["parameters"] = route.query.iter().map(parameter).collect();
    }
    if let Some(body) = route.body {
        let content = json!({ "application/json": { "schema": body(generator) } });
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn answer(answer: Answer, generator: &mut SchemaGenerator) -> Value {
    match answer {
        Answer::Nothing => json!({ "description": "Done" }),
        Answer::Json(schema) => json!({
            "description": "So it is",
            "content": { "application/json": { "schema": schema(generator) } },
        }),
        Answer::Stream(kind) => json!({
            "description": "Until the connection ends",
            "content": { kind: {} },
        }),
        Answer::Connection => json!({
            "description": "No answer in HTTP: the connection is handed over",
        }),
    }
}
