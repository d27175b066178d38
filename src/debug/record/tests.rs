//! Records in JSON and as lines; the sink.

use super::*;

#[test]
fn a_record_in_json_and_as_a_line() {
    let told = Record::Told(ToldRecord { category: "loader".into(), text: "x".into() });
    assert_eq!(serde_json::to_string(&told).unwrap(), r#"{"type":"told","category":"loader","text":"x"}"#);
    assert_eq!(told.line(12.345), "[12.3ms][TRACE:loader] x");
}

#[test]
fn a_sink_refuses_records_of_its_own() {
    let told = || Record::Told(ToldRecord { category: "perf".into(), text: String::new() });
    let cell: Rc<RefCell<Option<Sink<'_>>>> = Rc::default();
    let inner = cell.clone();
    let sink = Sink::new(move |record| inner.borrow().as_ref().map_or(Ok(()), |sink| sink.put(record)));
    *cell.borrow_mut() = Some(sink.clone());
    assert!(sink.put(told()).is_err());
    *cell.borrow_mut() = None;
    assert!(sink.put(told()).is_ok());
}
