//! Against the running kernel; what `nft` reads out of it is compared in the system tests.

use super::*;
use crate::sys::netns;

const TABLE: &str = "under_test";

fn range(first: &str, last: &str) -> Range {
    (first.parse().unwrap(), last.parse().unwrap())
}

/// Runs `act` in a namespace of its own, unless this kernel or this user cannot.
fn in_namespace(act: impl FnOnce(&mut Nftables) + Send) {
    let Ok(own) = netns::create() else {
        eprintln!("skipped: CAP_SYS_ADMIN missing");
        return;
    };
    netns::run_in(&own, || {
        let mut nftables = Nftables::open()?;
        match nftables.fingerprint(TABLE) {
            Ok(None) => act(&mut nftables),
            _ => eprintln!("skipped: nftables missing in this kernel"),
        }
        Ok(())
    })
    .unwrap();
}

fn with_set(ranges: &[Range]) -> Batch<'static> {
    let mut batch = Batch::new(TABLE);
    batch.add_table();
    batch.add_set("set", ranges.first().is_some_and(|range| range.0.is_ipv6()));
    batch.add_ranges("set", ranges);
    batch
}

#[test]
fn chains_are_named_as_nft_has_them() {
    let chain: Chain = "ip6 filter INPUT".parse().unwrap();
    assert_eq!((chain.family, chain.to_string().as_str()), (Family::Ip6, "ip6 filter INPUT"));
    for text in ["", "inet", "inet filter", "arp filter input", "inet filter input drop"] {
        assert!(text.parse::<Chain>().is_err(), "{text}");
    }
    assert!(format!("ip {} INPUT", "x".repeat(256)).parse::<Chain>().is_err());
}

#[test]
fn a_rules_comment_is_found_among_its_data() {
    assert_eq!(comment(b"\x00\x05adit\0").as_deref(), Some("adit"));
    assert_eq!(comment(b"\x01\x02xy\x00\x05adit\0").as_deref(), Some("adit"));
    for broken in [&b""[..], b"\x00", b"\x00\x09adit\0", b"\x01\x02xy"] {
        assert_eq!(comment(broken), None, "{broken:?}");
    }
}

#[test]
fn bounds_become_ranges() {
    let addr = |last: u8| IpAddr::from([10, 0, 0, last]);
    let bounds = vec![(addr(0), true), (addr(8), true), (addr(4), false), (addr(8), false), (addr(9), true)];
    let expected = [(addr(4), addr(7)), (addr(8), addr(8))];
    assert_eq!(ranges_of(bounds), expected);
    assert_eq!(ranges_of(vec![(addr(4), false)]), [range("10.0.0.4", "255.255.255.255")]);
    assert_eq!(ranges_of(vec![(addr(4), true)]), []);
}

#[test]
fn ranges_are_listed_as_they_were_added_and_changed_by_differences() {
    in_namespace(|nftables| {
        for [a, b, c, joined] in [
            [
                range("10.0.0.0", "10.0.255.255"),
                range("10.2.0.0", "10.2.0.0"),
                range("255.0.0.0", "255.255.255.255"),
                range("10.0.0.0", "10.2.0.0"),
            ],
            [
                range("::", "::ff"),
                range("fd00::", "fd00::ffff"),
                range("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
                range("::", "fd00::ffff"),
            ],
        ] {
            nftables.commit(&with_set(&[a, b, c])).unwrap();
            assert_eq!(nftables.ranges(TABLE, "set").unwrap(), [a, b, c]);
            // Two that lie apart become one that covers both, in one batch.
            let mut batch = Batch::new(TABLE);
            batch.remove_ranges("set", &[a, b]);
            batch.add_ranges("set", &[joined]);
            nftables.commit(&batch).unwrap();
            assert_eq!(nftables.ranges(TABLE, "set").unwrap(), [joined, c]);
            let mut batch = Batch::new(TABLE);
            batch.remove_ranges("set", &[joined, c]);
            batch.add_ranges("set", &[b]);
            nftables.commit(&batch).unwrap();
            assert_eq!(nftables.ranges(TABLE, "set").unwrap(), [b]);
            let mut batch = Batch::new(TABLE);
            batch.remove_table();
            nftables.commit(&batch).unwrap();
        }
    });
}

#[test]
fn many_ranges_go_into_one_batch() {
    in_namespace(|nftables| {
        let every_other = |at: u32| {
            let addr = IpAddr::from((0x0a00_0000 + 2 * at).to_be_bytes());
            (addr, addr)
        };
        let ranges: Vec<_> = (0..5000).map(every_other).collect();
        nftables.commit(&with_set(&ranges)).unwrap();
        assert_eq!(nftables.ranges(TABLE, "set").unwrap(), ranges);
    });
}

#[test]
fn a_batch_that_is_refused_names_the_offender_and_leaves_nothing() {
    in_namespace(|nftables| {
        let mut batch = with_set(&[range("10.0.0.0", "10.0.0.1")]);
        batch.add_chain("chain", Hook::Forward, 0);
        batch.add_rule("chain", "no such counter", &[Expression::Count("missing")]);
        batch.add_rule("chain", "well-formed", &[Expression::Drop]);
        let refused = nftables.commit(&batch).unwrap_err();
        let expected = "rule of chain chain (no such counter): No such file or directory (os error 2)";
        assert_eq!(refused.to_string(), expected);
        assert_eq!(nftables.fingerprint(TABLE).unwrap(), None);

        let mut batch = Batch::new(TABLE);
        batch.remove_table();
        let refused = nftables.commit(&batch).unwrap_err();
        assert!(refused.to_string().starts_with("removing table inet under_test: "), "{refused}");
        // The socket is of use after a refusal.
        nftables.commit(&with_set(&[])).unwrap();
        nftables.commit(&Batch::new(TABLE)).unwrap();
        assert!(nftables.fingerprint(TABLE).unwrap().is_some());
    });
}

#[test]
fn counters_begin_where_they_are_told_to() {
    in_namespace(|nftables| {
        let count = Count { packets: 7, bytes: 1 << 40 };
        let mut batch = Batch::new(TABLE);
        batch.add_table();
        batch.add_counter("one", count);
        batch.add_counter("other", Count::default());
        nftables.commit(&batch).unwrap();
        let expected = [("one".to_owned(), count), ("other".to_owned(), Count::default())];
        assert_eq!(nftables.counters(TABLE).unwrap(), BTreeMap::from(expected));
        assert_eq!(nftables.counters("elsewhere").unwrap(), BTreeMap::new());
    });
}

#[test]
fn changes_by_others_are_told_of_and_seen() {
    in_namespace(|nftables| {
        let mut changes = Changes::open(0).unwrap();
        let mut own = Changes::open(nftables.port()).unwrap();
        let mut batch = Batch::new(TABLE);
        batch.add_table();
        batch.add_chain("chain", Hook::Input, -10);
        batch.add_rule("chain", "everything", &[Expression::Drop]);
        nftables.commit(&batch).unwrap();
        assert!(changes.take(TABLE, &[]));
        assert!(!changes.take(TABLE, &[]));
        let before = nftables.fingerprint(TABLE).unwrap();
        assert_eq!(nftables.fingerprint(TABLE).unwrap(), before);

        let mut batch = Batch::new("elsewhere");
        batch.add_table();
        nftables.commit(&batch).unwrap();
        assert!(!changes.take(TABLE, &[]));
        assert_eq!(nftables.fingerprint(TABLE).unwrap(), before);

        let mut batch = Batch::new(TABLE);
        batch.add_rule("chain", "one more", &[Expression::Accept]);
        nftables.commit(&batch).unwrap();
        assert!(changes.take(TABLE, &[]));
        assert_ne!(nftables.fingerprint(TABLE).unwrap(), before);
        assert!(!own.take(TABLE, &[]), "who listens for others is not told of what it does");
        let mut batch = Batch::new(TABLE);
        batch.add_rule("chain", "another's", &[Expression::Accept]);
        Nftables::open().unwrap().commit(&batch).unwrap();
        assert!(own.take(TABLE, &[]));
    });
}
