//! What the client is told of its parameters (ParameterStatus), whichever server has them.

use std::sync::Arc;

use super::{Scene, answer, check, query};
use crate::proxy::guc::Startup;

const SETTINGS: &str = "1 2 C:BEGIN 1 2 D C:SELECT_1 1 2 C:COMMIT";

/// Of what was said to the client, the parameters.
fn told(scene: &mut Scene, sql: &str, reply: &str) -> Vec<(String, String)> {
    let before = scene.core.told.of_session().map(owned).collect::<Vec<_>>();
    scene.client(&query(sql)).server(&answer(reply));
    scene.core.told.of_session().map(owned).filter(|now| !before.contains(now)).collect()
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn news(name: &str, value: &str) -> Vec<(String, String)> {
    vec![owned((name, value))]
}

#[test]
fn what_another_server_has_reset_is_told() {
    let mut scene = Scene::new();
    let zone = [("DateStyle", "ISO, MDY"), ("TimeZone", "UTC")];
    scene.login(&zone);
    assert_eq!(told(&mut scene, "set timezone = 'CET'", "C:SET S:TimeZone=CET ZI"), news("TimeZone", "CET"));
    // Set and reset in front of one ReadyForQuery: this server has nothing to report.
    scene.server = Scene::server_after_login(&zone);
    assert_eq!(
        told(&mut scene, "reset timezone", &format!("{SETTINGS} C:RESET ZI")),
        news("TimeZone", "UTC")
    );
    assert_eq!(told(&mut scene, "select 1", "C:SELECT_1 ZI"), []);
    check(
        &scene,
        "need(write) >Q <CSZ(I) release need(write) >PBEPBEPBEQ <CSZ(I) release need(read) >Q <CZ(I) release",
    );
}

#[test]
fn a_server_with_other_values_tells_them() {
    let mut scene = Scene::new();
    scene.login(&[("TimeZone", "UTC"), ("in_hot_standby", "off")]);
    // Its own configuration; and a standby is the node's affair.
    scene.server = Scene::server_after_login(&[("TimeZone", "CET"), ("in_hot_standby", "on")]);
    assert_eq!(told(&mut scene, "select 1", "C:SELECT_1 ZI"), news("TimeZone", "CET"));
    // Another client's settings are none of this one's.
    scene.login(&[("TimeZone", "UTC")]);
    scene.server.reported.set("TimeZone", "Asia/Tokyo");
    assert_eq!(told(&mut scene, "select 1", "S:TimeZone=UTC C:SELECT_1 ZI"), []);
    check(&scene, "need(read) >Q <CSZ(I) release need(read) >Q <CZ(I) release");
}

#[test]
fn a_reset_in_a_block_means_the_startup_packets_value() {
    let mut scene = Scene::new();
    let asked = vec![("application_name".to_owned(), "app".to_owned())];
    scene.core = scene.core.with_settings(Arc::new(Startup::read(&asked).settings));
    scene.login(&[("application_name", "")]);
    let begin = format!("{SETTINGS} C:BEGIN S:application_name=app ZT");
    assert_eq!(told(&mut scene, "/**/begin", &begin), []);
    let name = "application_name";
    let set = "C:SET S:application_name=x ZT";
    assert_eq!(told(&mut scene, "set application_name = x", set), news(name, "x"));
    let reset = "C:RESET S:application_name= ZT";
    assert_eq!(told(&mut scene, "reset application_name", reset), news(name, "app"));
    let rollback = "C:ROLLBACK S:application_name=app ZI";
    assert_eq!(told(&mut scene, "rollback", rollback), []);
}

#[test]
fn what_a_function_has_set_back_is_followed_although_nothing_is_reported() {
    let mut scene = Scene::new();
    scene.login(&[("TimeZone", "UTC")]);
    scene.client(&query("set timezone = 'CET'")).server(&answer("C:SET S:TimeZone=CET ZI"));
    scene.server = Scene::server_after_login(&[("TimeZone", "UTC")]);
    let reply = format!("{SETTINGS} T D C:SELECT_1 ZI");
    assert_eq!(told(&mut scene, "select sets_utc()", &reply), news("TimeZone", "UTC"));
    assert_eq!(super::followed(&scene).0, "(timezone,UTC)");
}
