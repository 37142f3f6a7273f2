//! The conditions of a run: what a reader must know to believe its figures and to repeat them.
//!
//! Each has its origin, because a name that a user typed is worth less than one that the engine itself reports. A condition
//! that cannot be found is absent, never guessed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a condition comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConditionOrigin {
    /// The inference server reported it.
    Server,
    /// The operating system of the machine on which `wattspan ipw run` ran.
    System,
    /// A file that the user named.
    File,
    /// The user stated it.
    User,
}

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub value: String,
    pub origin: ConditionOrigin,
}

/// Conditions by name: `engine`, `engine_version`, `model_file`, `quantization`, `cpu_governor` and so on.
pub type Conditions = BTreeMap<String, Condition>;

/// The engines whose servers can be asked for their version, by `owned_by` in their list of models.
const ENGINES: [(&str, &str, &str); 4] = [
    ("vllm", "vLLM", "/version"),
    ("sglang", "SGLang", "/get_server_info"),
    ("llamacpp", "llama.cpp", "/props"),
    ("library", "Ollama", "/api/version"),
];

fn insert(conditions: &mut Conditions, origin: ConditionOrigin, name: &str, value: &str) {
    if !value.is_empty() {
        conditions.insert(name.to_owned(), Condition { value: value.to_owned(), origin });
    }
}

/// Reads a server's list of models: the conditions that it states of `model`, and the path at the server's root that has
/// the engine's version, if the engine is known.
pub fn read_model_list(list: &[u8], model: &str) -> (Conditions, Option<&'static str>) {
    let mut found = Conditions::new();
    let list: Value = serde_json::from_slice(list).unwrap_or_default();
    let entries = || ["data", "models"].into_iter().filter_map(|key| list[key].as_array()).flatten();
    let is_model = |entry: &&Value| ["id", "name", "model"].iter().any(|key| entry[*key] == model);
    let Some(entry) = entries().find(is_model).or_else(|| entries().next()) else { return (found, None) };
    let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let is_ollama = entry["details"]["quantization_level"].is_string();
    let owner = if is_ollama { "library".to_owned() } else { text(&entry["owned_by"]) };
    let engine = ENGINES.iter().find(|(owned_by, ..)| *owned_by == owner);
    insert(&mut found, ConditionOrigin::Server, "engine", engine.map_or(&owner, |(_, name, _)| name));
    for (name, value) in [
        ("model_root", &entry["root"]),
        ("model_digest", &entry["digest"]),
        ("quantization", &entry["details"]["quantization_level"]),
        ("model_parameters", &entry["details"]["parameter_size"]),
    ] {
        insert(&mut found, ConditionOrigin::Server, name, &text(value));
    }
    if let Some(count) = entry["meta"]["n_params"].as_u64() {
        insert(&mut found, ConditionOrigin::Server, "model_parameters", &count.to_string());
    }
    (found, engine.map(|(_, _, path)| *path))
}

/// Reads an engine's description of itself.
pub fn read_engine_description(reply: &[u8]) -> Conditions {
    let mut found = Conditions::new();
    let reply: Value = serde_json::from_slice(reply).unwrap_or_default();
    let text = |key: &str| reply[key].as_str().unwrap_or_default();
    let version = if text("version").is_empty() { text("build_info") } else { text("version") };
    insert(&mut found, ConditionOrigin::Server, "engine_version", version);
    // The directory may name a user of the machine.
    let file = text("model_path").rsplit(['/', '\\']).next().unwrap_or_default();
    insert(&mut found, ConditionOrigin::Server, "model_file", file);
    let quantization =
        if text("quantization").is_empty() { quantization_of(file) } else { text("quantization") };
    insert(&mut found, ConditionOrigin::Server, "quantization", quantization);
    found
}

/// The quantization that a file's name states, as llama.cpp's and Hugging Face's conventions have it.
fn quantization_of(file: &str) -> &str {
    const NAMES: [&str; 10] = ["f16", "bf16", "f32", "fp16", "fp8", "awq", "gptq", "int4", "int8", "mxfp4"];
    let is_quantization = |part: &&str| {
        let lower = part.to_ascii_lowercase();
        let digits = lower.trim_start_matches('i').strip_prefix('q').and_then(|rest| rest.chars().next());
        NAMES.contains(&lower.as_str()) || digits.is_some_and(|digit| digit.is_ascii_digit())
    };
    file.split(['-', '.']).rfind(is_quantization).unwrap_or_default()
}

/// Reads the conditions of this machine that change its energy: the governor of the processors and the driver of the GPUs.
/// `root` is `/`, or the root of a copy of its files.
pub fn read_system(root: &Path) -> Conditions {
    let mut found = Conditions::new();
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let cpus = fs::read_dir(root.join("sys/devices/system/cpu")).into_iter().flatten().flatten();
    let governors: BTreeSet<String> = cpus
        .filter_map(|cpu| fs::read_to_string(cpu.path().join("cpufreq/scaling_governor")).ok())
        .map(|governor| governor.trim().to_owned())
        .collect();
    let governors = governors.into_iter().collect::<Vec<_>>().join(", ");
    insert(&mut found, ConditionOrigin::System, "cpu_governor", &governors);
    let driver = read("proc/driver/nvidia/version");
    let driver =
        driver.lines().next().and_then(|line| line.strip_prefix("NVRM version:")).unwrap_or_default();
    insert(&mut found, ConditionOrigin::System, "gpu_driver", driver.trim());
    let boards = fs::read_dir(root.join("proc/driver/nvidia/gpus")).into_iter().flatten().flatten();
    let mut models: Vec<String> = boards
        .filter_map(|board| fs::read_to_string(board.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned()))
        .collect();
    models.sort();
    insert(&mut found, ConditionOrigin::System, "gpus", &models.join(", "));
    found
}

/// Reads the name, the size and the SHA-256 of a model's file.
///
/// # Errors
/// The file cannot be read.
pub fn read_model_file(path: &Path) -> io::Result<Conditions> {
    let (hash, length) = sha256_of_file(path)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut found = Conditions::new();
    for (condition, value) in [
        ("model_file", name.as_str()),
        ("model_bytes", length.to_string().as_str()),
        ("model_sha256", hash.as_str()),
        ("quantization", quantization_of(&name)),
    ] {
        insert(&mut found, ConditionOrigin::File, condition, value);
    }
    Ok(found)
}

/// The SHA-256 of a file in hexadecimal digits, and its length in bytes.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of_file(path: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer, mut length) = (Context::new(&SHA256), vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => {
                hash.update(&buffer[..count]);
                length += count as u64;
            }
        }
    }
    let digits = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((digits, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(conditions: &Conditions) -> Vec<(&str, &str)> {
        conditions.iter().map(|(name, condition)| (name.as_str(), condition.value.as_str())).collect()
    }

    #[test]
    fn the_engine_is_read_from_the_list_of_models() {
        // As vLLM, llama.cpp's server, SGLang and Ollama write their lists.
        let vllm = br#"{"object":"list","data":[{"id":"other","owned_by":"vllm"},
            {"id":"m","owned_by":"vllm","root":"org/m-AWQ","max_model_len":4096}]}"#;
        let (found, path) = read_model_list(vllm, "m");
        assert_eq!(values(&found), [("engine", "vLLM"), ("model_root", "org/m-AWQ")]);
        assert_eq!(path, Some("/version"));
        let llama = br#"{"data":[{"id":"m.gguf","owned_by":"llamacpp","meta":{"n_params":1235814432}}]}"#;
        let (found, path) = read_model_list(llama, "any");
        assert_eq!(values(&found), [("engine", "llama.cpp"), ("model_parameters", "1235814432")]);
        assert_eq!(path, Some("/props"));
        let ollama =
            br#"{"models":[{"name":"m:1b","model":"m:1b","digest":"baf6","details":{"parameter_size":"1.2B",
            "quantization_level":"Q8_0"}}]}"#;
        let (found, path) = read_model_list(ollama, "m:1b");
        assert_eq!(
            values(&found),
            [
                ("engine", "Ollama"),
                ("model_digest", "baf6"),
                ("model_parameters", "1.2B"),
                ("quantization", "Q8_0")
            ]
        );
        assert_eq!(path, Some("/api/version"));
        let unknown = br#"{"data":[{"id":"m","owned_by":"organization-owner"}]}"#;
        assert_eq!(read_model_list(unknown, "m").1, None);
        for invalid in [&b"<html>"[..], b"{}", br#"{"data":[]}"#, br#"{"data":[1]}"#, br#"{"data":7}"#] {
            assert_eq!(read_model_list(invalid, "m"), (Conditions::new(), None));
        }
    }

    #[test]
    fn an_engine_describes_itself_without_the_paths_of_the_machine() {
        assert_eq!(
            values(&read_engine_description(br#"{"version":"0.11.0"}"#)),
            [("engine_version", "0.11.0")]
        );
        let props = br#"{"build_info":"b6123-79c1160b","model_path":"/home/ann/models/Qwen2.5-0.5B-Instruct-Q4_K_M.gguf"}"#;
        assert_eq!(
            values(&read_engine_description(props)),
            [
                ("engine_version", "b6123-79c1160b"),
                ("model_file", "Qwen2.5-0.5B-Instruct-Q4_K_M.gguf"),
                ("quantization", "Q4_K_M")
            ]
        );
        assert!(read_engine_description(b"not found").is_empty());
    }

    #[test]
    fn a_quantization_is_read_from_a_name_and_never_guessed() {
        for (name, quantization) in [
            ("llama-3.2-1b-instruct-iq3_xs.gguf", "iq3_xs"),
            ("Qwen2.5-7B-Instruct-AWQ", "AWQ"),
            ("gpt-oss-20b-MXFP4.gguf", "MXFP4"),
            ("model-bf16.gguf", "bf16"),
            ("Qwen2.5-7B-Instruct.gguf", ""),
            ("model.gguf", ""),
            ("", ""),
        ] {
            assert_eq!(quantization_of(name), quantization, "{name}");
        }
    }

    #[test]
    fn the_system_has_a_governor_and_a_driver() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n");
        write("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n");
        write("sys/devices/system/cpu/cpu2/cpufreq/scaling_governor", "performance\n");
        write(
            "proc/driver/nvidia/version",
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.10\nGCC version: 13\n",
        );
        write(
            "proc/driver/nvidia/gpus/0000:01:00.0/information",
            "Model: \t\t NVIDIA H200\nIRQ:   \t\t 17\n",
        );
        assert_eq!(
            values(&read_system(dir.path())),
            [
                ("cpu_governor", "performance, powersave"),
                ("gpu_driver", "NVIDIA UNIX x86_64 Kernel Module  570.86.10"),
                ("gpus", "NVIDIA H200")
            ]
        );
        assert!(read_system(&dir.path().join("nowhere")).is_empty());
    }

    #[test]
    fn a_model_file_is_known_by_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small-Q8_0.gguf");
        fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(
            values(&read_model_file(&path).unwrap()),
            [
                ("model_bytes", "3"),
                ("model_file", "small-Q8_0.gguf"),
                ("model_sha256", hash),
                ("quantization", "Q8_0")
            ]
        );
        assert!(read_model_file(&dir.path().join("missing")).is_err());
    }
}
