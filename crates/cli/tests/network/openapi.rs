//! The control API against its own description: every path and method of the document, asked of a
//! daemon with guests, and answered as the document says.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::{Guest, Lab};
use crate::ports::free_ports;

struct Answer {
    status: u16,
    kind: String,
    body: Vec<u8>,
}

fn ask(lab: &Lab, method: &str, target: &str, body: &str) -> Answer {
    let mut stream = UnixStream::connect(lab.0.path("_networks/lab/lab_ep.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let len = body.len();
    write!(stream, "{method} {target} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{body}").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Answer { status: 0, kind: String::new(), body: bytes };
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("Content-Type: ")).unwrap();
    Answer { status, kind: kind.into(), body: bytes.split_off(end + 4) }
}

/// A request for each path and method that goes well, in an order in which it does.
fn requests(port: u16) -> Vec<(&'static str, &'static str, String, Value)> {
    let forward = |port| json!({"local": format!("127.0.0.1:{port}"), "remote": "10.71.0.4:80"});
    let listen = format!("127.0.0.1:{port}");
    let added = json!({"forwards": [
        {"protocol": "tcp", "listen": listen, "target": "10.71.0.4:80", "guest": "web"},
    ]});
    let removed = json!({"forwards": [{"protocol": "tcp", "listen": listen}]});
    let zone = json!({
        "Name": "zone.test.", "Records": [{"Name": "a", "IP": "10.71.0.9"}], "DefaultIP": "",
    });
    let get = |path: &'static str| ("get", path, String::new(), Value::Null);
    let post = |path: &'static str, body| ("post", path, String::new(), body);
    let query = |method, path, query: &str| (method, path, format!("?{query}"), Value::Null);
    vec![
        get("/v1/openapi.json"),
        post("/v1/hold", Value::Null),
        get("/stats"),
        get("/cam"),
        get("/leases"),
        get("/services/dhcp/leases"),
        post("/services/forwarder/expose", forward(port)),
        get("/services/forwarder/all"),
        post("/services/forwarder/unexpose", forward(port)),
        post("/v1/forwards", added),
        get("/v1/forwards"),
        get("/v1/network"),
        post("/v1/forwards/remove", removed),
        get("/v1/guests"),
        post("/services/dns/add", zone),
        get("/services/dns/all"),
        get("/v1/flows"),
        query("get", "/v1/dns", "name=lima-web.internal&type=A"),
        query("get", "/v1/capture", "guest=web"),
        post("/v1/tunnels", json!({"port": 0})),
        get("/v1/tunnels"),
        query("delete", "/v1/tunnels", ""),
        query("get", "/tunnel", "ip=10.71.0.4&port=1"),
        query("post", "/tunnel", "ip=10.71.0.4&port=1"),
        get("/connect"),
        post("/connect", Value::Null),
        post("/v1/release", Value::Null),
    ]
}

/// A schema of the document, with those that it refers to.
fn validator(document: &Value, schema: &Value) -> jsonschema::Validator {
    let mut schema = schema.clone();
    schema["components"] = document["components"].clone();
    jsonschema::draft202012::new(&schema).unwrap()
}

#[test]
fn every_path_answers_as_the_document_says() {
    let lab = Lab::new();
    let mut web = Guest::start(&lab, &["--name", "web"]);
    let _unnamed = Guest::start(&lab, &[]);
    assert_eq!(web.line("ping -q -c 1 10.71.0.1 >/dev/null && echo reached"), "reached");
    let document: Value =
        serde_json::from_slice(&ask(&lab, "GET", "/v1/openapi.json", "").body).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let operations = document["paths"].as_object().unwrap().iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
    });
    let described: BTreeSet<(String, String)> = operations.collect();
    let free = free_ports(1);
    let requests = requests(free);
    let asked = requests.iter().map(|(method, path, ..)| ((*method).into(), (*path).into()));
    assert_eq!(asked.collect::<BTreeSet<_>>(), described);

    for (method, path, query, body) in requests {
        let operation = &document["paths"][path][method];
        let body = match &operation["requestBody"]["content"]["application/json"]["schema"] {
            Value::Null => String::new(),
            schema => {
                let validator = validator(&document, schema);
                assert!(validator.is_valid(&body), "{path}: {body}");
                body.to_string()
            }
        };
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let named = query.trim_start_matches('?').split('&').filter(|pair| !pair.is_empty());
        for name in named.map(|pair| pair.split('=').next().unwrap()) {
            assert!(parameters.iter().any(|p| p["name"] == name), "{path}: {name}");
        }
        let target = format!("{path}{query}");
        let Answer { status, kind, body } = ask(&lab, &method.to_uppercase(), &target, &body);
        let text = String::from_utf8_lossy(&body);
        let good = &operation["responses"]["200"];
        let Some(content) = good["content"].as_object() else {
            // Done without a word, or no HTTP any more; a stream to a closed port is an error.
            let over = ["/connect", "/tunnel"].contains(&path);
            assert!(
                if over { status != 404 } else { status == 200 && body.is_empty() },
                "{path}: {text}"
            );
            continue;
        };
        assert_eq!((status, content.keys().next()), (200, Some(&kind)), "{method} {path}: {text}");
        let schema = &content[&kind]["schema"];
        if !schema.is_null() {
            let value: Value = serde_json::from_slice(&body).unwrap();
            let validator = validator(&document, schema);
            let errors: Vec<_> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{path}: {errors:?} {value}");
            // A schema that refuses nothing would say nothing.
            assert!(!validator.is_valid(&json!("nonsense")), "{path}");
        }
        // What is required is missed.
        if parameters.iter().any(|p| p["required"] == true) {
            assert_eq!(ask(&lab, &method.to_uppercase(), path, "").status, 400, "{path}");
        }
    }
    assert_eq!(ask(&lab, "GET", "/v1/nothing", "").status, 404);
    // What no path takes is refused on each.
    for (_, path) in &described {
        let status = ask(&lab, "PATCH", path, "").status;
        assert!([400, 405].contains(&status), "{path}: {status}");
    }
}
