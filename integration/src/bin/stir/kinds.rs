//! Memory of every other kind, each page marked: shared, of a memfd, of a file and private, locked, a stack.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{
    null_mut, read_volatile, with_exposed_provenance, with_exposed_provenance_mut, write_volatile,
};

use anyhow::{Result, ensure};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ForkResult, fork};

const PAGE: usize = 4096;
const LEN: usize = 4 << 20;
/// Little enough for every limit.
const LOCKED_LEN: usize = 8 * PAGE;
/// How much a stack grows when it is asked to, in frames of a page.
const FRAMES: u64 = 256;

struct Mapping {
    kind: &'static str,
    address: usize,
    len: usize,
}

/// All of them, and what keeps them.
pub struct Kinds {
    mappings: Vec<Mapping>,
    _file: File,
}

impl Kinds {
    /// Makes and marks them. `stack` is of the caller's frame.
    pub fn mark(stack: &mut [u64]) -> Result<Self> {
        let anonymous = libc::MAP_ANONYMOUS;
        let memfd = File::from(memfd_create(c"stir", MFdFlags::MFD_CLOEXEC)?);
        memfd.set_len(LEN as u64)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open("/stirred")?;
        for number in (0..LEN / PAGE).step_by(2) {
            let _at = file.seek(SeekFrom::Start((number * PAGE) as u64))?;
            file.write_all(&mark_of(number).to_ne_bytes())?;
        }
        file.set_len(LEN as u64)?;
        let growing = libc::MAP_PRIVATE | anonymous | libc::MAP_GROWSDOWN | libc::MAP_STACK;
        let mappings = vec![
            Mapping::new("shared", LEN, libc::MAP_SHARED | anonymous, -1)?,
            Mapping::new("memfd", LEN, libc::MAP_SHARED, memfd.as_raw_fd())?,
            Mapping::new("private file", LEN, libc::MAP_PRIVATE, file.as_raw_fd())?,
            Mapping::new("growing down", LEN, growing, -1)?,
            Mapping::new("locked", LOCKED_LEN, libc::MAP_PRIVATE | anonymous, -1)?.locked()?,
            Mapping {
                kind: "stack",
                address: stack.as_mut_ptr().expose_provenance(),
                len: std::mem::size_of_val(stack),
            },
        ];
        for mapping in &mappings {
            // Of the file the even pages are as they are there.
            let step = if mapping.kind == "private file" { 2 } else { 1 };
            for number in (step - 1..mapping.len / PAGE).step_by(step) {
                mapping.write(number, mark_of(number));
            }
        }
        Ok(Self {
            mappings,
            _file: file,
        })
    }

    /// Every page holds its mark.
    pub fn check(&self) -> Result<()> {
        for mapping in &self.mappings {
            for number in 0..mapping.len / PAGE {
                let (found, wanted) = (mapping.read(number), mark_of(number));
                let kind = mapping.kind;
                ensure!(
                    found == wanted,
                    "{kind}: page {number} holds {found} instead of {wanted}"
                );
            }
        }
        Ok(())
    }

    /// What a child writes is seen in what is shared, and only there; and a stack grows.
    pub fn share(&self) -> Result<()> {
        // SAFETY: there is one thread; the child writes memory and ends.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => drop(nix::sys::wait::waitpid(child, None)?),
            ForkResult::Child => {
                self.mappings.iter().for_each(|mapping| mapping.write(1, 7));
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(0) }
            }
        }
        for mapping in &self.mappings {
            let is_shared = ["shared", "memfd"].contains(&mapping.kind);
            let wanted = if is_shared { 7 } else { mark_of(1) };
            let (found, kind) = (mapping.read(1), mapping.kind);
            ensure!(
                found == wanted,
                "{kind}: a child left {found} instead of {wanted}"
            );
            mapping.write(1, mark_of(1));
        }
        ensure!(deepen(FRAMES) == FRAMES, "a stack that grew holds something else");
        Ok(())
    }
}

impl Mapping {
    fn new(kind: &'static str, len: usize, flags: i32, fd: RawFd) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { libc::mmap(null_mut(), len, protection, flags, fd, 0) };
        ensure!(
            address != libc::MAP_FAILED,
            "map {kind}: {}",
            std::io::Error::last_os_error()
        );
        let address = address.expose_provenance();
        Ok(Self { kind, address, len })
    }

    fn locked(self) -> Result<Self> {
        // SAFETY: the mapping is ours.
        let done = unsafe { libc::mlock(with_exposed_provenance(self.address), self.len) };
        ensure!(done == 0, "lock: {}", std::io::Error::last_os_error());
        Ok(self)
    }

    fn read(&self, number: usize) -> u64 {
        // SAFETY: within the mapping, which lives as long as the program.
        unsafe { read_volatile(with_exposed_provenance(self.address + number * PAGE)) }
    }

    fn write(&self, number: usize, value: u64) {
        // SAFETY: as in `read`; nothing else refers to it meanwhile.
        unsafe { write_volatile(with_exposed_provenance_mut(self.address + number * PAGE), value) }
    }
}

fn mark_of(number: usize) -> u64 {
    number as u64 + 1_000_001
}

/// Frames of a page each; returns how many of them held what was written into them.
#[inline(never)]
fn deepen(frames: u64) -> u64 {
    let mut frame = [0_u64; PAGE / size_of::<u64>()];
    frame[0] = std::hint::black_box(frames);
    let below = if frames > 1 { deepen(frames - 1) } else { 0 };
    below + u64::from(*std::hint::black_box(&frame[0]) == frames)
}
