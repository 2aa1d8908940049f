//! Dialogues as data: what goes in, what comes out, both in one line each. The answers are those that servers
//! from 13 to 18 gave to the same questions.

mod play;

use play::{Play, World, check};

const M: u64 = 1 << 20;

/// Timeline 3 at 0/5000000, forked from 2 at 0/4000060 and from 1 at 0/3000100; segments from 0/2000000 on.
fn world() -> World {
    let history = "1\t0/3000100\tno recovery target specified\n\n2\t0/4000060\tx\n";
    World::new("15.20 (Debian 15.20-0+deb12u1)", 3, 80 * M, history)
        .oldest(1, 32 * M)
        .oldest(2, 48 * M)
        .oldest(3, 64 * M)
}

fn simple() -> World {
    World::new("15.20", 1, 24 * M, "").oldest(1, 16 * M)
}

#[test]
fn greeting() {
    let mut play = Play::new(simple());
    assert_eq!(
        play.take(),
        ["S server_version=15.20", "S application_name=pg2", "S session_authorization=rep", "K 7 42", "Z"]
    );
    let unborn = World::new("15.20", 1, 0, "");
    assert_eq!(
        Play::new(unborn).take(),
        ["E FATAL 57P03 the database system is starting up", "CLOSE Refused"]
    );
}

#[test]
fn the_commands_of_each_version() {
    let slot_row =
        "T slot_name:25(-1,-1) consistent_point:25(-1,-1) snapshot_name:25(-1,-1) output_plugin:25(-1,-1)";
    for (version, timeline, history, reads_slots) in [
        ("13.23", "23(4,-1)", "T filename:25(-1,0) content:17(-1,0)", false),
        ("14.23", "23(4,-1)", "T filename:25(-1,0) content:25(-1,0)", false),
        ("15.20", "23(4,-1)", "T filename:25(-1,0) content:25(-1,0)", true),
        ("16.14", "20(8,-1)", "T filename:25(-1,-1) content:25(-1,-1)", true),
        ("18.4", "20(8,-1)", "T filename:25(-1,-1) content:25(-1,-1)", true),
    ] {
        let identity = format!("T systemid:25(-1,-1) timeline:{timeline} xlogpos:25(-1,-1) dbname:25(-1,-1)");
        let world = || World::new(version, 1, 24 * M, "").oldest(1, 16 * M);
        let read_slot: &[&str] = if reads_slots {
            &[
                "T slot_type:25(-1,-1) restart_lsn:25(-1,-1) restart_tli:20(8,-1)",
                "D NULL NULL NULL",
                "C READ_REPLICATION_SLOT",
                "Z",
            ]
        } else {
            &["E ERROR 0A000 cannot execute SQL commands in WAL sender for physical replication", "Z"]
        };
        check(
            world(),
            &[
                (
                    "Q IDENTIFY_SYSTEM",
                    &[&identity, "D 7710395414144942410 1 0/1800000 NULL", "C IDENTIFY_SYSTEM", "Z"],
                ),
                ("Q SHOW wal_segment_size", &["T wal_segment_size:25(-1,-1)", "D 16MB", "C SHOW", "Z"]),
                ("Q SHOW data_directory_mode", &["T data_directory_mode:25(-1,-1)", "D 0700", "C SHOW", "Z"]),
                ("Q SHOW nothing", &["E ERROR 42704 unrecognized configuration parameter \"nothing\"", "Z"]),
                ("Q READ_REPLICATION_SLOT \"nope\"", read_slot),
                (
                    "Q CREATE_REPLICATION_SLOT \"pg_walreceiver_9\" TEMPORARY PHYSICAL RESERVE_WAL",
                    &[slot_row, "D pg_walreceiver_9 0/0 NULL NULL", "C CREATE_REPLICATION_SLOT", "Z"],
                ),
                (
                    "Q DROP_REPLICATION_SLOT \"m1\"",
                    &["E ERROR 42704 replication slot \"m1\" does not exist", "Z"],
                ),
                (
                    "Q TIMELINE_HISTORY 2",
                    &[
                        history,
                        "E ERROR 58P01 could not open file \"pg_wal/00000002.history\": No such file or directory",
                        "Z",
                    ],
                ),
                (
                    "Q START_REPLICATION 9/0 TIMELINE 1",
                    &[
                        "W",
                        "E ERROR XX000 requested starting point 9/0 is ahead of the WAL flush position of this \
                         server 0/1800000",
                        "Z",
                    ],
                ),
                (
                    "Q SELECT 1",
                    &[
                        "E ERROR 0A000 cannot execute SQL commands in WAL sender for physical replication",
                        "Z",
                    ],
                ),
                (
                    "Q ALTER_REPLICATION_SLOT s (FAILOVER)",
                    &["E ERROR 0A000 ALTER_REPLICATION_SLOT is not supported by this relay", "Z"],
                ),
                (
                    "Q START_REPLICATION 0/0 TIMELINE 2",
                    &["E ERROR XX000 requested timeline 2 is not in this server's history", "Z"],
                ),
            ],
        );
    }
}

#[test]
fn history_files_are_sent_as_they_are() {
    check(
        world(),
        &[(
            "Q TIMELINE_HISTORY 3",
            &[
                "T filename:25(-1,0) content:25(-1,0)",
                "D 00000003.history 1\t0/3000100\tno recovery target specified\n\n2\t0/4000060\tx\n",
                "C TIMELINE_HISTORY",
                "Z",
            ],
        )],
    );
}

#[test]
fn only_simple_queries() {
    check(
        simple(),
        &[
            ("P", &["E ERROR 08P01 extended query protocol not supported in a replication connection"]),
            ("B", &[]),
            ("Q IDENTIFY_SYSTEM", &[]),
            ("S", &["Z"]),
            ("F", &["E ERROR 08P01 fastpath function calls not supported in a replication connection", "Z"]),
            // What a standby may still send behind an error that ended its stream.
            ("d", &[]),
            ("c", &[]),
            ("Q SHOW server_version", &["T server_version:25(-1,-1)", "D 15.20", "C SHOW", "Z"]),
            ("!", &["E FATAL 08P01 invalid frontend message type 33", "CLOSE Refused"]),
            ("Q IDENTIFY_SYSTEM", &[]),
        ],
    );
}

#[test]
fn slots_persist_before_they_are_answered() {
    check(
        simple(),
        &[
            ("Q CREATE_REPLICATION_SLOT a PHYSICAL (RESERVE_WAL)", &["SAVE"]),
            (
                "saved",
                &[
                    "T slot_name:25(-1,-1) consistent_point:25(-1,-1) snapshot_name:25(-1,-1) output_plugin:25(-1,-1)",
                    "D a 0/0 NULL NULL",
                    "C CREATE_REPLICATION_SLOT",
                    "Z",
                ],
            ),
            (
                "Q CREATE_REPLICATION_SLOT a PHYSICAL",
                &["E ERROR 42710 replication slot \"a\" already exists", "Z"],
            ),
            (
                "Q READ_REPLICATION_SLOT a",
                &[
                    "T slot_type:25(-1,-1) restart_lsn:25(-1,-1) restart_tli:20(8,-1)",
                    "D physical 0/1000000 1",
                    "C READ_REPLICATION_SLOT",
                    "Z",
                ],
            ),
            ("Q DROP_REPLICATION_SLOT a", &["SAVE"]),
            ("not saved", &["E ERROR 58030 could not write the file of replication slots", "Z"]),
            // What could not be saved is no slot.
            ("Q CREATE_REPLICATION_SLOT b PHYSICAL", &["SAVE"]),
            (
                "no room",
                &[
                    "E ERROR 53100 could not write the file of replication slots: No space left on device",
                    "Z",
                ],
            ),
            ("Q DROP_REPLICATION_SLOT b", &["E ERROR 42704 replication slot \"b\" does not exist", "Z"]),
        ],
    );
}

#[test]
fn a_slot_has_one_user() {
    let world = simple().used_slot("pg3", 99);
    check(
        world,
        &[
            (
                "Q START_REPLICATION SLOT pg3 0/1000000 TIMELINE 1",
                &["E ERROR 55006 replication slot \"pg3\" is active for PID 99", "Z"],
            ),
            (
                "Q START_REPLICATION SLOT other 0/1000000 TIMELINE 1",
                &["E ERROR 42704 replication slot \"other\" does not exist", "Z"],
            ),
            (
                "Q DROP_REPLICATION_SLOT pg3",
                &["E ERROR 55006 replication slot \"pg3\" is active for PID 99", "Z"],
            ),
            ("Q DROP_REPLICATION_SLOT pg3 WAIT", &[]),
            ("time 50", &[]),
            ("time 60", &[]),
            ("release pg3 99", &[]),
            ("time 100", &["SAVE"]),
            ("saved", &["C DROP_REPLICATION_SLOT", "Z"]),
        ],
    );
}

#[test]
fn start_on_a_historic_timeline() {
    check(
        world(),
        &[
            (
                "Q START_REPLICATION 0/3000200 TIMELINE 1",
                &[
                    "E ERROR XX000 requested starting point 0/3000200 on timeline 1 is not in this server's history \
                     | This server's history forked from timeline 1 at 0/3000100.",
                    "Z",
                ],
            ),
            (
                "Q START_REPLICATION 0/3000100 TIMELINE 1",
                &[
                    "T next_tli:20(8,-1) next_tli_startpos:25(-1,-1)",
                    "D 2 0/3000100",
                    "C START_STREAMING",
                    "C START_REPLICATION",
                    "Z",
                ],
            ),
            ("Q START_REPLICATION 0/3000000 TIMELINE 1", &["W", "READ 1 0/3000000 256"]),
            ("data", &["w 0/3000000 +256 end 0/3000100", "c"]),
            (
                "c",
                &[
                    "T next_tli:20(8,-1) next_tli_startpos:25(-1,-1)",
                    "D 2 0/3000100",
                    "C START_STREAMING",
                    "C START_REPLICATION",
                    "Z",
                ],
            ),
            // The same connection goes on, from the segment's start, before timeline 2 was born.
            ("Q START_REPLICATION 0/3000000 TIMELINE 2", &["W", "READ 2 0/3000000 1048576"]),
            // It gives up half way: no more than an answer is owed.
            (
                "c",
                &[
                    "c",
                    "T next_tli:20(8,-1) next_tli_startpos:25(-1,-1)",
                    "D 3 0/4000060",
                    "C START_STREAMING",
                    "C START_REPLICATION",
                    "Z",
                ],
            ),
            // The answer to the read comes when nobody wants it any more.
            ("data", &[]),
        ],
    );
}

#[test]
fn a_lost_slot_is_refused_as_its_server_would() {
    let read = (
        "Q READ_REPLICATION_SLOT pg3",
        &[
            "T slot_type:25(-1,-1) restart_lsn:25(-1,-1) restart_tli:20(8,-1)",
            "D physical NULL NULL",
            "C READ_REPLICATION_SLOT",
            "Z",
        ][..],
    );
    let gone = "Q START_REPLICATION SLOT pg3 0/0 TIMELINE 1";
    let why = "This replication slot has been invalidated due to \"wal_removed\".";
    let refused = format!("E ERROR 55000 can no longer access replication slot \"pg3\" | {why}");
    check(
        World::new("18.4", 1, 24 * M, "").oldest(1, 16 * M).lost_slot("pg3"),
        &[read, (gone, &[&refused, "Z"])],
    );
    let removed = "E ERROR 58P01 requested WAL segment 000000010000000000000000 has already been removed";
    check(simple().lost_slot("pg3"), &[read, (gone, &["W", removed, "Z"])]);

    // A follower that lacks nothing makes it a good slot again.
    let mut play = Play::new(World::new("18.4", 1, 24 * M, "").oldest(1, 16 * M).lost_slot("pg3"));
    play.take();
    play.check(&[("Q START_REPLICATION SLOT pg3 0/1000000 TIMELINE 1", &["W", "READ 1 0/1000000 1048576"])]);
    assert!(!play.slot("pg3").is_lost());
}

#[test]
fn what_is_gone_is_told_behind_copy_both() {
    check(
        world(),
        &[
            (
                "Q START_REPLICATION 0/1000000 TIMELINE 1",
                &[
                    "W",
                    "E ERROR 58P01 requested WAL segment 000000010000000000000001 has already been removed",
                    "Z",
                ],
            ),
            ("Q START_REPLICATION 0/2000000 TIMELINE 1", &["W", "READ 1 0/2000000 1048576"]),
            (
                "data removed",
                &[
                    "E ERROR 58P01 requested WAL segment 000000010000000000000002 has already been removed",
                    "Z",
                ],
            ),
            ("Q START_REPLICATION 0/2000000 TIMELINE 1", &["W", "READ 1 0/2000000 1048576"]),
            ("data failed", &["E ERROR 58030 could not read WAL segment 000000010000000000000002", "Z"]),
            ("Q START_REPLICATION 0/2000000 TIMELINE 1", &["W", "READ 1 0/2000000 1048576"]),
            (
                "data corrupt",
                &[
                    "E ERROR XX001 WAL segment 000000010000000000000002 is corrupt at 0/2000028 | the record's back \
                     link is 0/8.",
                    "Z",
                ],
            ),
        ],
    );
}

#[test]
fn catch_up_from_files_then_the_ring_and_the_live_switch() {
    let world = simple().oldest(2, 16 * M).slot("pg2").ring(24 * M - 64 * 1024);
    let mut play = Play::new(world);
    play.take();
    play.check(&[(
        "Q START_REPLICATION SLOT \"pg2\" 0/1000000 TIMELINE 1",
        &["W", "READ 1 0/1000000 1048576"],
    )]);
    for n in 0..7 {
        let (from, next) = ((16 + n) * M, (17 + n) * M);
        let sent = format!("w 0/{from:X} +1048576 end 0/1800000");
        // The last stretch overlaps the ring and is read up to the end all the same.
        let read = format!("READ 1 0/{next:X} 1048576");
        play.check(&[("data", &[&sent, &read])]);
    }
    play.check(&[
        ("data", &["w 0/1700000 +1048576 end 0/1800000"]),
        ("tail 1 0/1800108", &["w 0/1800000 +264 end 0/1800108"]),
        ("tail 1 0/1840000", &["w 0/1800108 +130808 end 0/1840000", "w 0/1820000 +131072 end 0/1840000"]),
        ("history 2 1\t0/1840000\tx", &[]),
        ("tail 2 0/1840098", &["c"]),
        ("time 100", &[]),
        ("r 0/1840000 0/1840000 0/1840000", &[]),
        (
            "c",
            &[
                "T next_tli:20(8,-1) next_tli_startpos:25(-1,-1)",
                "D 2 0/1840000",
                "C START_STREAMING",
                "C START_REPLICATION",
                "Z",
            ],
        ),
    ]);
    let progress = play.progress();
    assert_eq!((progress.timeline.0, progress.replay.0), (1, 0x184_0000));
    play.check(&[(
        "Q START_REPLICATION SLOT \"pg2\" 0/1840000 TIMELINE 2",
        &["W", "w 0/1840000 +152 end 0/1840098"],
    )]);
    let progress = play.progress();
    // What it had replayed of timeline 1 it has of timeline 2.
    assert_eq!((progress.timeline.0, progress.replay.0), (2, 0x184_0000));
}

#[test]
fn a_switch_behind_what_was_sent_ends_at_once() {
    let mut play = Play::new(simple().ring(0));
    play.take();
    play.check(&[
        ("Q START_REPLICATION 0/17FFF00 TIMELINE 1", &["W", "w 0/17FFF00 +256 end 0/1800000"]),
        ("history 2 1\t0/17FFFD0\tx", &[]),
        ("tail 2 0/1800000", &["c"]),
    ]);
    // A read that was under way is cut at the switchpoint.
    let mut play = Play::new(simple());
    play.take();
    play.check(&[
        ("Q START_REPLICATION 0/17FFF00 TIMELINE 1", &["W", "READ 1 0/17FFF00 256"]),
        ("history 2 1\t0/17FFF10\tx", &[]),
        ("tail 2 0/1900000", &[]),
        ("data", &["w 0/17FFF00 +16 end 0/17FFF10", "c"]),
    ]);
}

#[test]
fn a_fork_that_leaves_the_follower_behind_is_an_error() {
    check(
        simple().ring(0),
        &[
            ("Q START_REPLICATION 0/1800000 TIMELINE 1", &["W"]),
            ("history 3 2\t0/1700000\tx", &[]),
            (
                "tail 3 0/1800000",
                &["E ERROR XX000 requested timeline 1 is not in this server's history", "Z"],
            ),
        ],
    );
}

#[test]
fn a_little_ahead_waits() {
    check(
        simple().ring(0),
        &[
            ("Q START_REPLICATION 0/2000000 TIMELINE 1", &["W"]),
            ("time 1000", &["k 0/1800000"]),
            ("tail 1 0/2000000", &[]),
            ("tail 1 0/2000010", &["w 0/2000000 +16 end 0/2000010"]),
        ],
    );
}

#[test]
fn the_client_ends_a_live_stream() {
    check(
        simple().ring(0),
        &[
            ("Q START_REPLICATION 0/1800000", &["W"]),
            ("c", &["c", "C START_STREAMING", "C START_REPLICATION", "Z"]),
            ("X", &["CLOSE Terminate"]),
        ],
    );
    check(
        simple().ring(0),
        &[("Q START_REPLICATION 0/1800000", &["W"]), ("shutdown", &["C COPY 0", "CLOSE Shutdown"])],
    );
    check(
        simple(),
        &[(
            "shutdown",
            &["E FATAL 57P01 terminating connection due to administrator command", "CLOSE Shutdown"],
        )],
    );
}

#[test]
fn every_request_for_a_reply_is_answered() {
    check(
        simple().ring(0),
        &[
            ("Q START_REPLICATION 0/1800000", &["W"]),
            ("r 0/1800000 0/1800000 0/1800000 !", &["k 0/1800000"]),
            ("r 0/1800000 0/1800000 0/1800000", &[]),
            ("d z", &[]),
            (
                "d r",
                &[
                    "E FATAL 08P01 invalid standby message: replication message of type 'r' has 1 bytes, 34 are expected",
                    "CLOSE Refused",
                ],
            ),
        ],
    );
}

#[test]
fn silence_is_asked_about_and_then_ended() {
    check(
        simple().ring(0),
        &[
            ("Q START_REPLICATION 0/1800000", &["W"]),
            ("r 0/1800000 0/1800000 0/1800000", &[]),
            ("time 1000", &["k 0/1800000"]),
            ("time 1000", &["k 0/1800000"]),
            ("time 3000", &["k 0/1800000 reply"]),
            ("time 4999", &["k 0/1800000 reply"]),
            ("time 1", &["CLOSE Timeout"]),
        ],
    );
}

#[test]
fn a_follower_that_has_not_replayed_is_asked() {
    check(
        simple().ring(0),
        &[
            ("Q START_REPLICATION 0/17FFF00", &["W", "w 0/17FFF00 +256 end 0/1800000"]),
            ("r 0/1800000 0/1800000 0/17FFF00", &[]),
            ("time 199", &[]),
            ("time 1", &["k 0/1800000 reply"]),
            ("r 0/1800000 0/1800000 0/1800000", &[]),
            ("time 200", &[]),
        ],
    );
}

#[test]
fn one_that_talks_and_does_not_read_is_bounded_and_dropped() {
    let mut play = Play::new(World::new("15.20", 1, 64 * M, "").oldest(1, 16 * M));
    play.take();
    play.check(&[
        ("Q START_REPLICATION 0/1000000", &["W", "READ 1 0/1000000 1048576"]),
        ("stop reading", &[]),
        ("data", &["w 0/1000000 +1048576 end 0/4000000", "READ 1 0/1100000 1048576"]),
        // Two reads wait: no third.
        ("data", &["w 0/1100000 +1048576 end 0/4000000"]),
    ]);
    for _ in 0..9 {
        play.check(&[("time 1000", &[]), ("r 0/1000000 0/0 0/0 !", &[])]);
    }
    play.check(&[("time 1000", &["CLOSE Timeout"])]);
}

#[test]
fn positions_are_believed_within_what_is_durable_and_never_go_back() {
    let mut play = Play::new(simple().slot("pg2").ring(0));
    play.take();
    play.check(&[("Q START_REPLICATION SLOT pg2 0/17FFF00", &["W", "w 0/17FFF00 +256 end 0/1800000"])]);
    let mut after = |report: &str| {
        play.check(&[(report, &[])]);
        let progress = play.progress();
        (progress.write.0, progress.flush.0, progress.replay.0)
    };
    // Reconnected: the segment is shipped again, what was flushed before counts.
    assert_eq!(after("r 0/1700000 0/1800000 0/17FFFF0"), (0x170_0000, 0x180_0000, 0x17F_FFF0));
    assert_eq!(after("r 0/1600000 0/1700000 0/1600000"), (0x170_0000, 0x180_0000, 0x17F_FFF0));
    // Nobody can have flushed what was never shipped.
    assert_eq!(after("r 0/1700000 100/0 0/1800001"), (0x170_0000, 0x180_0000, 0x17F_FFF0));
    let restart = play.slot("pg2").restart.expect("the follower has flushed");
    assert_eq!((restart.timeline.0, restart.lsn.0), (1, 0x180_0000));
    play.check(&[("X", &["CLOSE Terminate"])]);
    assert_eq!(play.slot("pg2").active_pid, None);
}

#[test]
fn malformed_input_ends_the_connection() {
    check(simple(), &[("malformed", &["E FATAL 08P01 invalid message length", "CLOSE Refused"])]);
    check(
        simple().ring(0),
        &[
            ("Q START_REPLICATION 0/1800000", &["W"]),
            ("Q IDENTIFY_SYSTEM", &["E FATAL 08P01 invalid standby message type \"Q\"", "CLOSE Refused"]),
        ],
    );
}

#[test]
fn a_base_backup_is_a_servers() {
    let mut play = Play::new(simple());
    play.take();
    play.check(&[
        ("Q UPLOAD_MANIFEST", &["PASS UPLOAD_MANIFEST"]),
        ("nobody", &["E ERROR 57P03 no server is there to take a base backup from", "Z"]),
        (
            "Q BASE_BACKUP ( TARGET 'server', TARGET_DETAIL '/tmp/x')",
            &["E ERROR 0A000 BASE_BACKUP ... TARGET is not supported by this relay", "Z"],
        ),
        ("Q BASE_BACKUP ( LABEL 'x')", &["PASS BASE_BACKUP ( LABEL 'x')"]),
        ("time 100000", &[]),
    ]);
}

#[test]
fn a_rate_holds_back_wal_and_not_keepalives() {
    let mut play = Play::new(World::new("15.20", 1, 17 * M, "").oldest(1, 16 * M).ring(16 * M));
    play.take();
    play.check(&[
        ("rate 65536", &[]),
        ("Q START_REPLICATION 0/1000000 TIMELINE 1", &["W", "w 0/1000000 +131072 end 0/1100000"]),
        ("time 1000", &["k 0/1100000"]),
        ("tail 1 0/1100008", &[]),
        ("time 1000", &["w 0/1020000 +131072 end 0/1100008", "k 0/1100008"]),
        // Another rate holds from now on.
        ("rate 131072", &["w 0/1040000 +131072 end 0/1100008"]),
        ("time 500", &[]),
        ("time 500", &["w 0/1060000 +131072 end 0/1100008", "k 0/1100008"]),
    ]);
}
