//! COPY in both protocols.

use super::{Scene, answer, check, extended, query};

#[test]
fn copy_in_by_both_protocols() {
    let mut scene = Scene::new();
    scene.client(&query("copy t from stdin")).server(&answer("G"));
    scene.client(b"d\0\0\0\x05xd\0\0\0\x05yc\0\0\0\x04").server(&answer("C:COPY_2 ZI"));
    // The first Sync is ignored by the server: it was in copy mode.
    scene.client(&extended("P::copy t from stdin|B|E|S")).server(&answer("1 2 G"));
    scene.client(b"d\0\0\0\x05xc\0\0\0\x04").client(&extended("S")).server(&answer("C:COPY_1 ZI"));
    // What comes after a COPY that failed is for nobody.
    scene.client(b"d\0\0\0\x05xc\0\0\0\x04");
    check(&scene, "need(write) >Q <G >ddc <CZ(I) release need(write) >PBES <12G >dc >S <CZ(I) release");
}
