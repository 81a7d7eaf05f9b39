//! A model directory for Python: the module that opens it in Hugging Face transformers.

use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::Write;

use crate::directory::{CONFIG, MAX_CONFIG_BYTES, read_json, write_json};
use crate::{DirectoryError, ModelDirectory};

/// T5 with AltUp, Sequence-AltUp and experts for transformers 5, whole in one file.
pub const PYTHON_MODULE: &str = include_str!("../python/modeling_altup_t5.py");

const MODULE_FILE: &str = "modeling_altup_t5.py";
const MODEL_CLASS: &str = "AltUpT5ForConditionalGeneration";

impl ModelDirectory {
    /// Adds [`PYTHON_MODULE`] to a directory, and to its `config.json` an `auto_map` that names it. Transformers 5 then
    /// opens the directory, whatever its `altup` and `moe` are, by
    /// `AutoModelForSeq2SeqLM.from_pretrained(FOLDER, trust_remote_code=True)`.
    ///
    /// # Errors
    ///
    /// Names the file that can't be read or written.
    pub fn add_python(&self) -> Result<(), DirectoryError> {
        let (path, module) = (self.path().join(CONFIG), self.path().join(MODULE_FILE));
        let mut config: Map<String, Value> = read_json(&path, MAX_CONFIG_BYTES)?;
        config.insert("architectures".into(), json!([MODEL_CLASS]));
        config.insert(
            "auto_map".into(),
            json!({
                "AutoConfig": "modeling_altup_t5.AltUpT5Config",
                "AutoModelForSeq2SeqLM": format!("modeling_altup_t5.{MODEL_CLASS}"),
            }),
        );
        let partial = module.with_extension("py.partial");
        let written = File::create(&partial).and_then(|mut file| {
            file.write_all(PYTHON_MODULE.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &module)
        });
        written.map_err(|source| DirectoryError::File { path: module, source })?;
        write_json(&path, &config.into()).map_err(|source| DirectoryError::File { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{T5Config, size};
    use burn::tensor::Device;

    #[test]
    fn the_module_and_its_classes_are_named_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let directory = ModelDirectory::new(folder.path());
        let config = T5Config { vocab_size: 32, d_model: 8, d_ff: 8, ..size("tiny").unwrap() };
        directory.save(&config, &config.init(0, &Device::flex())).unwrap();
        directory.add_python().unwrap();

        let module = fs::read_to_string(folder.path().join(MODULE_FILE)).unwrap();
        let json: Value = read_json(&folder.path().join(CONFIG), MAX_CONFIG_BYTES).unwrap();
        for class in json["auto_map"].as_object().unwrap().values() {
            let name = class.as_str().unwrap().strip_prefix("modeling_altup_t5.").unwrap();
            assert!(module.contains(&format!("\nclass {name}(")), "{name}");
        }
        assert_eq!(directory.config().unwrap(), config);
    }

    #[test]
    fn a_directory_without_a_configuration_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let error = ModelDirectory::new(folder.path()).add_python().unwrap_err();
        assert!(error.to_string().contains(CONFIG), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
