//! How far readers may go, what becomes of claims, and who may board.
//!
//! In: a flight that nobody flies. Out: what its readers find. Not here: requests and streams.

use super::*;
use crate::{
    read::withheld::{HOLD_BACK, Withheld::*},
    store::originals::Originals,
};

const SIZE: u64 = 3 * UNIT;

fn flight(dir: &tempfile::TempDir) -> Flight {
    let originals = Originals::open(dir.path()).unwrap();
    let digest = headstart_layer_format::BlobDigest::of(b"x");
    let mut partial = originals.partial(&digest, "u").unwrap();
    partial.set_size(SIZE).unwrap();
    Flight::new(partial, SIZE, Bytes::new(), CancellationToken::new())
}

fn claim(flight: &Flight, range: Range<u64>) -> u64 {
    flight.state().claims.add(range, true)
}

fn upto(flight: &Flight, range: Range<u64>, withheld: Withheld) -> Option<u64> {
    match flight.state().view(&range, withheld) {
        View::Upto(end) => Some(end),
        _ => None,
    }
}

#[test]
fn readers_of_the_whole_go_as_far_as_the_bytes_but_not_into_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let flight = flight(&dir);
    let all = claim(&flight, 0..SIZE);
    flight.write(all, &[1; 100]).unwrap();
    assert_eq!(upto(&flight, 0..SIZE, End), Some(100));
    flight.write(all, &vec![1; SIZE as usize]).unwrap();
    assert_eq!(upto(&flight, 100..SIZE, End), Some(SIZE - HOLD_BACK));
    assert_eq!(upto(&flight, SIZE - HOLD_BACK..SIZE, End), None);
    assert_eq!(upto(&flight, 0..HOLD_BACK, End), None);
    // A part is another matter, and so is what is withheld altogether.
    assert_eq!(upto(&flight, 0..HOLD_BACK, Nothing), Some(HOLD_BACK));
    for range in [0..SIZE, 0..HOLD_BACK, UNIT..SIZE - 1] {
        assert_eq!(upto(&flight, range, All), None);
    }
    flight.finish(Ok(()));
    for withheld in [All, End] {
        assert_eq!(upto(&flight, SIZE - HOLD_BACK..SIZE, withheld), Some(SIZE));
    }
    assert_eq!(
        flight.readable_blocking(&(SIZE..SIZE), Instant::now()).unwrap(),
        Some(SIZE)
    );
}

#[test]
fn a_failure_reaches_every_reader_even_with_bytes_left_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let flight = flight(&dir);
    let all = claim(&flight, 0..SIZE);
    flight.write(all, &vec![1; SIZE as usize]).unwrap();
    flight.finish(Err(ReadError::DigestMismatch));
    flight.finish(Ok(()));
    for withheld in [All, End, Nothing] {
        let view = flight.state().view(&(0..SIZE), withheld);
        assert!(matches!(view, View::Failed(ReadError::DigestMismatch)));
    }
    assert!(flight.has_failed() && !flight.board());
}

#[test]
fn first_bytes_are_given_before_they_are_in_the_file_but_nothing_of_a_tail() {
    let dir = tempfile::tempdir().unwrap();
    let flight = Flight {
        early: Bytes::from_static(b"early"),
        ..flight(&dir)
    };
    flight.state().early = 5;
    assert_eq!(upto(&flight, 0..SIZE, End), Some(5));
    assert_eq!(upto(&flight, 2..SIZE, End), Some(5));
    assert_eq!(upto(&flight, 0..HOLD_BACK, End), None);
    assert_eq!(upto(&flight, 5..SIZE, End), None);
    assert_eq!(flight.early(&(0..SIZE)), "early");
    assert_eq!(flight.early(&(1..3)), "ar");
    assert!(flight.early(&(5..9)).is_empty() && flight.early(&(3..3)).is_empty());
    let all = claim(&flight, 0..SIZE);
    flight.write(all, &[1; 100]).unwrap();
    assert_eq!(upto(&flight, 0..SIZE, End), Some(100));
}

#[test]
fn what_is_here_is_never_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let flight = flight(&dir);
    let middle = claim(&flight, UNIT..2 * UNIT);
    flight.write(middle, &vec![2; UNIT as usize]).unwrap();
    assert!(flight.left(middle).is_none());
    flight.release(middle, None);
    let all = claim(&flight, 0..SIZE);
    flight.write(all, &vec![3; 2 * UNIT as usize]).unwrap();
    assert_eq!(flight.left(all), Some(2 * UNIT..SIZE));
    let mut bytes = vec![0; 2 * UNIT as usize];
    std::os::unix::fs::FileExt::read_exact_at(&**flight.file(), &mut bytes, 0).unwrap();
    assert!(bytes[..UNIT as usize].iter().all(|&b| b == 3));
    assert!(bytes[UNIT as usize..].iter().all(|&b| b == 2));
}

#[test]
fn units_that_two_claims_complete_are_marked() {
    let dir = tempfile::tempdir().unwrap();
    let flight = flight(&dir);
    let (first, second) = (claim(&flight, 0..100), claim(&flight, 100..UNIT));
    flight.write(second, &vec![1; UNIT as usize]).unwrap();
    flight.write(first, &[1; 200]).unwrap();
    drop(flight);
    let originals = Originals::open(dir.path()).unwrap();
    let digest = headstart_layer_format::BlobDigest::of(b"x");
    assert_eq!(originals.partial(&digest, "u").unwrap().prefix(), UNIT);
}

#[test]
fn who_gives_up_says_why_to_those_who_wait_and_nobody_boards_a_closed_flight() {
    let dir = tempfile::tempdir().unwrap();
    let flight = flight(&dir);
    assert!(matches!(flight.state().view(&(0..1), Nothing), View::Missing));
    let first = claim(&flight, 0..100);
    let View::Awaited(Some(failed)) = flight.state().view(&(0..1), Nothing) else {
        panic!("somebody is fetching it");
    };
    assert!(!flight.close_if_idle());
    flight.release(first, Some(ReadError::Incomplete));
    assert!(matches!(failed.get(), Some(ReadError::Incomplete)));
    assert!(flight.board() && !flight.close_if_idle());
    flight.unboard();
    assert!(flight.close_if_idle() && !flight.board());
}
