//! Checks JSON against the schemas of an OpenAPI document: the keywords that this project's document uses, and a
//! panic for any other, so that nothing goes unchecked silently.

use serde_json::{Map, Value};

/// Keywords that say nothing about what is valid, or less than `type` says.
const ANNOTATIONS: [&str; 5] = ["description", "format", "default", "propertyNames", "title"];

/// All violations of `schema` in `value`, with their places.
pub fn violations(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check_whole(document, schema, value, "$", &mut found);
    found
}

/// A schema with all its parts against a whole value.
fn check_whole(document: &Value, schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    check(document, schema, value, place, found);
    forbid_undescribed(document, schema, value, place, found);
}

fn check(document: &Value, schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    let Some(keywords) = schema.as_object() else {
        assert_eq!(schema, &Value::Bool(true), "{place}: a schema is an object or true");
        return;
    };
    for (keyword, rule) in keywords {
        match keyword.as_str() {
            "$ref" => check(document, resolve(document, rule), value, place, found),
            "type" => check_type(rule, value, place, found),
            "enum" => {
                if !list(rule).contains(value) {
                    found.push(format!("{place}: {value} is none of {rule}"));
                }
            }
            "required" => check_required(rule, value, place, found),
            "properties" => check_properties(document, rule, value, place, found),
            "additionalProperties" => check_others(document, (schema, rule), value, place, found),
            "items" => check_items(document, rule, value, place, found),
            "minimum" => {
                // Of numbers only: what else may be there, null for one, has none.
                if value.is_number() && value.as_f64() < rule.as_f64() {
                    found.push(format!("{place}: {value} is below {rule}"));
                }
            }
            "allOf" => list(rule).iter().for_each(|part| check(document, part, value, place, found)),
            "oneOf" => {
                let matching = list(rule).iter().filter(|part| violations(document, part, value).is_empty()).count();
                if matching != 1 {
                    found.push(format!("{place}: {value} matches {matching} of the alternatives"));
                }
            }
            known if ANNOTATIONS.contains(&known) => {}
            unknown => panic!("{place}: teach this validator the keyword {unknown}"),
        }
    }
}

/// Answers hold no field that the document leaves out (clients must ignore such fields, but here they are mistakes).
fn forbid_undescribed(document: &Value, schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    let Some(fields) = value.as_object() else { return };
    let mut known = Map::new();
    collect_properties(document, schema, &mut known);
    for name in fields.keys().filter(|name| !known.is_empty() && !known.contains_key(*name)) {
        found.push(format!("{place}.{name}: is not described"));
    }
}

fn collect_properties(document: &Value, schema: &Value, known: &mut Map<String, Value>) {
    if let Some(reference) = schema.get("$ref") {
        collect_properties(document, resolve(document, reference), known);
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        known.extend(properties.clone());
    }
    for part in schema.get("allOf").map(list).unwrap_or_default() {
        collect_properties(document, part, known);
    }
}

fn check_type(rule: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    let types = if rule.is_array() { list(rule).to_vec() } else { vec![rule.clone()] };
    let is_of = |name: &Value| match name.as_str().expect("types are words") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("no JSON type {other}"),
    };
    if !types.iter().any(is_of) {
        found.push(format!("{place}: {value} is no {rule}"));
    }
}

fn check_required(rule: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    for name in list(rule).iter().filter_map(Value::as_str) {
        if value.get(name).is_none() {
            found.push(format!("{place}.{name}: is missing"));
        }
    }
}

fn check_properties(document: &Value, rule: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    for (name, schema) in rule.as_object().expect("properties are an object") {
        if let Some(field) = value.get(name) {
            check_whole(document, schema, field, &format!("{place}.{name}"), found);
        }
    }
}

/// Each field that `properties` does not name, for maps: their schema says what their values are.
fn check_others(
    document: &Value,
    (schema, rule): (&Value, &Value),
    value: &Value,
    place: &str,
    found: &mut Vec<String>,
) {
    let is_named = |name: &str| schema.get("properties").is_some_and(|named| named.get(name).is_some());
    for (name, field) in value.as_object().into_iter().flatten().filter(|(name, _)| !is_named(name)) {
        check_whole(document, rule, field, &format!("{place}.{name}"), found);
    }
}

fn check_items(document: &Value, rule: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check_whole(document, rule, item, &format!("{place}[{index}]"), found);
    }
}

fn resolve<'a>(document: &'a Value, reference: &Value) -> &'a Value {
    let pointer = reference.as_str().and_then(|text| text.strip_prefix('#')).expect("references are local");
    document.pointer(pointer).expect("references lead somewhere")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

#[test]
fn the_validator_sees_each_kind_of_violation() {
    let document = serde_json::json!({"s": {"Name": {"type": "string"}}});
    let schema = serde_json::json!({
        "type": "object",
        "required": ["name", "count"],
        "properties": {
            "name": {"$ref": "#/s/Name"},
            "count": {"type": "integer", "minimum": 0},
            "word": {"type": "string", "enum": ["a", "b"]},
            "list": {"type": "array", "items": {"type": ["boolean", "null"]}},
            "inner": {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
            "map": {"type": "object", "additionalProperties": {"type": "string"}},
            "either": {"oneOf": [{"type": "null"}, {"$ref": "#/s/Name"}]},
        }
    });
    let good = serde_json::json!({"name": "x", "count": 1, "word": "b", "list": [true, null], "either": null, "inner": {"a": 1, "b": 2}, "map": {"k": "v"}});
    let bad = serde_json::json!({"name": 1, "word": "c", "list": [1], "either": 2, "more": 1, "inner": {"c": 1}, "map": {"k": 1}});

    assert_eq!(violations(&document, &schema, &good), Vec::<String>::new());
    let mut found: Vec<String> = violations(&document, &schema, &bad)
        .into_iter()
        .map(|text| text.split(':').next().expect("a place").to_owned())
        .collect();
    found.sort();
    assert_eq!(found, ["$.count", "$.either", "$.inner.c", "$.list[0]", "$.map.k", "$.more", "$.name", "$.word"]);
    let negative = serde_json::json!({"name": "x", "count": -1});
    assert_eq!(violations(&document, &schema, &negative), ["$.count: -1 is below 0"]);
}
