//! A card that is saved, and loaded into another.

use serde_json::{Value, json};

use super::*;

#[test]
fn a_card_that_is_loaded_shows_what_the_guest_has_drawn() {
    let mut desk = Desk::new();
    desk.resource(5, 64, 64);
    desk.draw(5, 64, 64, 0);
    desk.done(command::SET_SCANOUT, &[1, 2, 30, 20, 0, 5]);
    desk.cursor(&[command::UPDATE_CURSOR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 3, 4, 0]);
    desk.screen.resize(Size { width: 100, height: 100 });
    desk.driver.serve_sources();
    let other = Arc::new(Screen::new(SIZE).unwrap());
    let mut viewer = other.attach().unwrap();
    desk.driver.reload(|_| Box::new(Gpu::new(other.clone()))).unwrap();
    let look = viewer.look();
    assert_eq!(look.surface.size(), Size { width: 30, height: 20 });
    let mut row = [0; 3];
    look.surface.read(28, 1, &mut row);
    assert_eq!(row, [3 * 64 + 29, 3 * 64 + 30, 0]);
    assert_eq!(look.cursor.flatten().map(|it| (it.hot_x, it.pixels[4095])), Some((3, 4095)));
    assert_eq!(desk.driver.config(0, 1), [1]);
    assert!(other.resize(SIZE));
    desk.done(command::RESOURCE_FLUSH, &[0, 0, 64, 64, 5, 0]);
    assert_eq!(viewer.look().rows, [0..20]);
}

#[test]
fn states_that_no_card_has_are_refused() {
    let backing = |count: usize| json!(vec![json!([0, 1]); count]);
    let resource = |id: u32, format: u32, width: u32, height: u32, backing: Value| json!({"id": id, "format": format, "width": width, "height": height, "backing": backing});
    let good = resource(1, 2, 8, 8, Value::Null);
    let rect = |x: u32, width: u32| json!({"x": x, "y": 0, "width": width, "height": 1});
    let state = |resources: Value, scanout: Value| json!({"events": 0, "resources": resources, "scanout": scanout, "cursor": null});
    let far = json!([[u64::MAX, u32::MAX], [0, 4]]);
    let load = |state: Value| {
        let screen = Arc::new(Screen::new(SIZE).unwrap());
        Gpu::new(screen).load(serde_json::from_value(state).unwrap())
    };
    load(state(json!([good, resource(2, 2, 1, 1, far)]), json!({"resource": 1, "rect": rect(0, 8)})))
        .unwrap();
    for wrong in [
        state(json!([good, good]), Value::Null),
        state(json!([resource(0, 2, 1, 1, Value::Null)]), Value::Null),
        state(json!([resource(1, 5, 1, 1, Value::Null)]), Value::Null),
        state(json!([resource(1, 2, u32::MAX, u32::MAX, Value::Null)]), Value::Null),
        state(json!([resource(1, 2, 1, 1, backing(16385))]), Value::Null),
        state(json!([good]), json!({"resource": 1, "rect": rect(8, 1)})),
        state(json!([good]), json!({"resource": 2, "rect": rect(0, 1)})),
        json!({"events": 2, "resources": [], "scanout": null, "cursor": null}),
    ] {
        assert!(load(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn pieces_that_are_no_memory_when_they_are_loaded_are_black() {
    let mut desk = Desk::new();
    desk.resource(1, 20, 16);
    desk.draw(1, 20, 16, 1);
    desk.done(command::SET_SCANOUT, &[0, 0, 20, 16, 0, 1]);
    let mut saved = serde_json::to_value(desk.driver.lock().device().save().unwrap()).unwrap();
    saved["resources"][0]["backing"][0][0] = json!(u64::MAX - 10);
    let mut gpu = Gpu::new(desk.screen.clone());
    gpu.load(serde_json::from_value(saved).unwrap()).unwrap();
    gpu.refresh(&desk.driver.memory);
    let mut pixels = [9; 2];
    desk.viewer.look().surface.read(0, 0, &mut pixels);
    assert_eq!(pixels, [0, 0]);
    desk.viewer.look().surface.read(18, 15, &mut pixels);
    assert_eq!(pixels, [319, 320]);
}
