//! Prepared statements: what a new Parse means behind a change of the schema.

use super::{Scene, answer, check, extended, query};

#[test]
fn a_text_is_parsed_anew_behind_a_change_of_the_schema() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:table t|S")).server(&answer("1 ZI"));
    scene.client(&query("alter table t add b text")).server(&answer("C:ALTER_TABLE ZI"));
    scene.client(&extended("C:s1|S"));
    scene.log.clear();
    // The server's copy is of no use to it, and everybody's from now on.
    scene.client(&extended("P:s2:table t|S")).server(&answer("3 1 ZI"));
    scene.client(&extended("P:s3:table t|S")).server(&answer("ZI"));
    check(&scene, "need(read) >C(bw_1)P(bw_1)S <1Z(I) release need(read) >S <1Z(I) release");
}

#[test]
fn another_name_of_the_client_keeps_what_it_means() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:table t|S")).server(&answer("1 ZI"));
    scene.client(&query("alter table t add b text")).server(&answer("C:ALTER_TABLE ZI"));
    scene.log.clear();
    scene.client(&extended("P:s2:table t|B:s1|S")).server(&answer("1 2 ZI"));
    check(&scene, "need(read) >P(bw_2)B(bw_1)S <12Z(I) release");
}

#[test]
fn what_others_prepared_before_the_change_is_prepared_anew_for_who_prepares_behind_it() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:table t|S")).server(&answer("1 ZI"));
    scene.client(&extended("C:s1|S")).server(&answer("ZI"));
    let before = std::mem::take(&mut scene.server);
    scene.client(&query("drop table t")).server(&answer("C:DROP_TABLE ZI"));
    scene.client(&extended("P:s1:table t|S")).server(&answer("1 ZI"));
    scene.log.clear();
    scene.server = before;
    scene.client(&extended("B:s1|E|S")).server(&answer("3 1 2 C:SELECT_1 ZI"));
    check(&scene, "need(read) >C(bw_1)P(bw_1)B(bw_1)ES <2CZ(I) release");
}

#[test]
fn a_close_that_was_left_out_has_closed_nothing() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:table t|S")).server(&answer("1 ZI"));
    scene.client(&extended("C:s1|S")).server(&answer("ZI"));
    scene.client(&query("drop table t")).server(&answer("C:DROP_TABLE ZI"));
    scene.log.clear();
    scene.client(&extended("P::selekt|P:s1:table t|S")).server(&answer("E:42601 ZI"));
    scene.client(&extended("P:s1:table t|S")).server(&answer("3 1 ZI"));
    check(
        &scene,
        "need(write) >PC(bw_1)P(bw_1)S <E(42601)Z(I) release need(read) >C(bw_1)P(bw_1)S <1Z(I) release",
    );
}

#[test]
fn a_parse_behind_what_may_fail_is_the_servers_to_answer() {
    let mut scene = Scene::new();
    scene.client(&extended("P:s1:select 1|S")).server(&answer("1 ZI"));
    scene.client(&query("/**/begin")).server(&answer("C:BEGIN ZT"));
    scene.log.clear();
    scene.client(&[query("select 1/0"), extended("P:s2:select 1|S")].concat());
    scene.server(&answer("E:22012 ZE 3 E:25P02 ZE"));
    check(&scene, ">QC(bw_1)P(bw_1)S <E(22012)Z(E) <E(25P02)Z(E)");
}

/// What is parsed while a change is under way may be parsed before it.
#[test]
fn a_change_behind_another_unit_is_noted_when_it_is_done() {
    let mut scene = Scene::new();
    scene.client(&[query("select 1"), query("alter table t add b int")].concat());
    scene.server(&answer("C:SELECT_1 ZI"));
    let before = scene.core.schema.now();
    scene.server(&answer("C:ALTER_TABLE ZI"));
    assert_ne!(scene.core.schema.now(), before);
}
