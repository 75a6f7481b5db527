//! Guests and monitors that do anything: whatever they write, the link goes on or is closed, and none
//! of its passes waits.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::framing::MAX_FRAME;

#[derive(Clone, Debug)]
enum Step {
    /// A word of a ring's. Its three parts are a page each.
    Ring {
        ring: usize,
        part: u64,
        index: u64,
        value: u64,
    },
    /// As a driver does it, whatever the chain is.
    Offer {
        ring: usize,
        head: u16,
    },
    Data {
        at: u64,
        bytes: Vec<u8>,
    },
    Receive,
    Give {
        len: usize,
    },
    Flush,
}

fn steps() -> impl Strategy<Value = Step> {
    // Half a descriptor: an address, or length, flags and the next one.
    let half = (0u64..0x11000, 0u64..8, 0u64..20)
        .prop_map(|(len, flags, next)| len | flags << 32 | next << 48);
    let value = prop_oneof![any::<u64>(), 0..MEMORY, MEMORY - 100..MEMORY + 100, half];
    let part = prop_oneof![6 => Just(0u64), 1 => 1u64..3];
    let word = (0usize..2, part, 0u64..34, value)
        .prop_map(|(ring, part, index, value)| Step::Ring { ring, part, index, value });
    let data = (0..MEMORY - 100, vec(any::<u8>(), 0..100));
    prop_oneof![
        6 => word,
        4 => (0usize..2, 0..SIZE + 4).prop_map(|(ring, head)| Step::Offer { ring, head }),
        2 => data.prop_map(|(at, bytes)| Step::Data { at, bytes }),
        3 => Just(Step::Receive),
        2 => prop_oneof![14usize..200, Just(MAX_FRAME)].prop_map(|len| Step::Give { len }),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_guest_may_write_anything(merges in any::<bool>(), steps in vec(steps(), 1..120)) {
        let mut features = vec![
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
        ];
        features.extend(merges.then_some(VIRTIO_NET_F_MRG_RXBUF));
        let mut machine = Machine::with(&features);
        for step in steps {
            match step {
                Step::Ring { ring, part, index, value } => {
                    let at = machine.rings[ring].table + 0x1000 * part + 8 * index;
                    machine.write(at, &value.to_le_bytes());
                }
                Step::Offer { ring, head } => machine.offer(ring, head),
                Step::Data { at, bytes } => machine.write(at, &bytes),
                Step::Receive => {
                    let got = machine.link.recv(&mut machine.batch);
                    prop_assert!(!matches!(got, Recv::Closed(_)), "{got:?}");
                    prop_assert!(machine.batch.iter().all(|frame| frame.data.len() <= MAX_FRAME));
                }
                Step::Give { len } => {
                    give(&mut machine, &frame(len), Offload::NONE);
                }
                Step::Flush => prop_assert_ne!(machine.link.flush(), Flushed::Closed),
            }
        }
    }

    #[test]
    fn a_monitor_may_say_anything(messages in vec(
        (
            0u32..48,
            prop_oneof![Just(1u32), Just(9u32), any::<u32>()],
            vec(any::<u8>(), 0..80),
            0usize..4,
        ),
        1..20,
    )) {
        let (mut monitor, connection) = UnixStream::pair().unwrap();
        let mut link = VhostUserLink::new(connection).unwrap();
        let mut batch = FrameBatch::default();
        for (code, flags, body, cut) in messages {
            let words = [code, flags, body.len() as u32];
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            bytes.extend(body);
            bytes.truncate(bytes.len() - cut);
            if monitor.write_all(&bytes).is_err() {
                break;
            }
            // What is missing is not waited for.
            let _ = link.recv(&mut batch);
            let _ = link.flush();
        }
    }
}
