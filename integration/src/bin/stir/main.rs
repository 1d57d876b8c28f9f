//! A program with much memory that comes back late after a restore, and what it does with it meanwhile: fork, unmap, move,
//! give up. It answers lines on stdin, as the workload does, with a number that counts the answers.
//!
//! ```text
//! stir MIB          that much private memory, each page marked with its number
//! stir MIB kinds    and some of every other kind
//! ```
//! `ready` first; then `ping`, `check` (every page), `touch` (one page of each MiB), `fork` (a child checks every page), `unmap`,
//! `move` and `forget` (of a quarter each: the second, third and last), `share` (of the other kinds): `ok N` or `bad: REASON`.
#![expect(
    unsafe_code,
    reason = "memory is mapped, moved and given up by address, and forked with; there is no safe way to it"
)]
#![expect(clippy::print_stdout, reason = "stdout is how the program speaks to its test")]

mod kinds;

use std::io::BufRead;
use std::ptr::{
    null_mut, read_volatile, with_exposed_provenance, with_exposed_provenance_mut, write_volatile,
};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;

use kinds::Kinds;

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
/// Half a MiB.
const STACK_WORDS: usize = 64 * 1024;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (mib, with_kinds) = match words.as_slice() {
        [mib] => (mib, false),
        [mib, word] if word == "kinds" => (mib, true),
        _ => bail!("usage: stir MIB [kinds]"),
    };
    // On the stack, and as good as used.
    let mut stack = [0; STACK_WORDS];
    let kinds = with_kinds
        .then(|| Kinds::mark(std::hint::black_box(&mut stack)))
        .transpose()?;
    let mut memory = Memory::mark(mib.parse::<usize>()? * MIB)?;
    println!("ready");
    let mut answers = 0_u64;
    for line in std::io::stdin().lock().lines() {
        answers += 1;
        let done = match line?.trim() {
            "check" => memory
                .check(PAGE)
                .and_then(|()| kinds.as_ref().map_or(Ok(()), Kinds::check)),
            "share" => kinds.as_ref().map_or(Ok(()), Kinds::share),
            "touch" => memory.check(MIB),
            "fork" => memory.check_in_child(),
            "unmap" => memory.unmap(),
            "move" => memory.relocate(),
            "forget" => memory.forget(),
            _ => Ok(()),
        };
        match done {
            Ok(()) => println!("ok {answers}"),
            Err(error) => println!("bad: {error:#}"),
        }
    }
    Ok(())
}

/// A piece of the memory: where it is now, and the number of its first page.
struct Piece {
    address: usize,
    len: usize,
    first: u64,
    /// It was given up: every page is zero.
    forgotten: bool,
}

struct Memory(Vec<Piece>);

impl Memory {
    fn mark(len: usize) -> Result<Self> {
        let address = map(len)?;
        for number in 0..len / PAGE {
            // SAFETY: within the mapping just made, which nothing else refers to.
            unsafe {
                write_volatile(
                    with_exposed_provenance_mut(address + number * PAGE),
                    number as u64 + 1,
                )
            };
        }
        let quarter = len / 4;
        let pieces = (0..4).map(|index| Piece {
            address: address + index * quarter,
            len: quarter,
            first: (index * quarter / PAGE) as u64 + 1,
            forgotten: false,
        });
        Ok(Self(pieces.collect()))
    }

    /// Reads a page every so many bytes.
    fn check(&self, step: usize) -> Result<()> {
        for piece in &self.0 {
            for at in (0..piece.len).step_by(step) {
                // SAFETY: pieces are mapped, and only this thread changes them.
                let found: u64 = unsafe { read_volatile(with_exposed_provenance(piece.address + at)) };
                let marked = piece.first + (at / PAGE) as u64;
                let wanted = if piece.forgotten { 0 } else { marked };
                ensure!(found == wanted, "page {marked} holds {found} instead of {wanted}");
            }
        }
        Ok(())
    }

    fn check_in_child(&self) -> Result<()> {
        // SAFETY: there is one thread; the child reads memory and ends.
        match unsafe { nix::unistd::fork() }? {
            nix::unistd::ForkResult::Parent { child } => {
                use nix::sys::wait::{WaitStatus, waitpid};
                let ended = waitpid(child, None)?;
                ensure!(
                    matches!(ended, WaitStatus::Exited(_, 0)),
                    "the child ended with {ended:?}"
                );
                Ok(())
            }
            nix::unistd::ForkResult::Child => {
                let code = i32::from(self.check(PAGE).is_err());
                // SAFETY: ends the child at once, without the parent's business at exit.
                unsafe { libc::_exit(code) }
            }
        }
    }

    fn unmap(&mut self) -> Result<()> {
        let piece = self.0.remove(1);
        // SAFETY: nothing refers to the piece any more.
        let done = unsafe { libc::munmap(with_exposed_provenance_mut(piece.address), piece.len) };
        ensure!(done == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }

    fn relocate(&mut self) -> Result<()> {
        let piece = self.0.iter_mut().rev().nth(1).context("a piece to move")?;
        let elsewhere = map(piece.len)?;
        let (from, to) = (
            with_exposed_provenance_mut(piece.address),
            with_exposed_provenance_mut::<libc::c_void>(elsewhere),
        );
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: from a piece of ours onto a mapping of ours, neither of which anything refers to but by number.
        let at = unsafe { libc::mremap(from, piece.len, piece.len, flags, to) };
        ensure!(at.addr() == elsewhere, "{}", std::io::Error::last_os_error());
        piece.address = elsewhere;
        Ok(())
    }

    fn forget(&mut self) -> Result<()> {
        let piece = self.0.last_mut().context("a piece to forget")?;
        let address = with_exposed_provenance_mut(piece.address);
        // SAFETY: within a piece of ours.
        let done = unsafe { libc::madvise(address, piece.len, libc::MADV_DONTNEED) };
        ensure!(done == 0, "{}", std::io::Error::last_os_error());
        piece.forgotten = true;
        Ok(())
    }
}

fn map(len: usize) -> Result<usize> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let address = unsafe { libc::mmap(null_mut(), len, protection, flags, -1, 0) };
    ensure!(address != libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    Ok(address.expose_provenance())
}
