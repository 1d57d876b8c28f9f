//! Which of a processor's features a program can have found out about and use without asking again.
//!
//! `/proc/cpuinfo` of x86 lists much beside instructions: what the kernel knows of clocks, faults and power, which differs between
//! kernels on one processor and is nothing to a program. On other architectures its list is what programs are told.

/// Instructions, by how their names begin.
const FAMILIES: [&str; 5] = ["sse", "avx", "amx", "xsave", "sha"];

/// The others.
const INSTRUCTIONS: [&str; 44] = [
    "3dnow",
    "3dnowext",
    "abm",
    "adx",
    "aes",
    "bmi1",
    "bmi2",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cx16",
    "cx8",
    "enqcmd",
    "f16c",
    "fma",
    "fma4",
    "fsgsbase",
    "fxsr",
    "gfni",
    "hle",
    "lahf_lm",
    "mmx",
    "monitorx",
    "movbe",
    "movdir64b",
    "movdiri",
    "ospke",
    "pclmulqdq",
    "popcnt",
    "rdpid",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "serialize",
    "sm3",
    "sm4",
    "ssse3",
    "tbm",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "xop",
];

/// Whether a program may rely on it.
pub(super) fn is_instruction(architecture: &str, feature: &str) -> bool {
    if architecture != "x86_64" {
        return true;
    }
    FAMILIES.iter().any(|family| feature.starts_with(family)) || INSTRUCTIONS.contains(&feature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_knows_is_nothing_to_a_program() {
        for (feature, counts) in [
            ("avx512f", true),
            ("sse4_2", true),
            ("sha_ni", true),
            ("popcnt", true),
            ("tsc_known_freq", false),
            ("rep_good", false),
            ("hypervisor", false),
            ("cpuid", false),
            ("smep", false),
        ] {
            assert_eq!(is_instruction("x86_64", feature), counts, "{feature}");
        }
        assert!(is_instruction("aarch64", "sve"));
    }
}
