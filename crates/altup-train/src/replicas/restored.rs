//! A run as it was saved, for replicas that don't have its folder; and whether their weights are still the same.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::ModuleOptimizer;
use burn::store::{ModuleRecord, RecordError};
use burn::tensor::{Bytes, Tensor};
use std::convert::Infallible;

use super::Replicas;
use crate::checkpoint::Restored;
use crate::learner::Learner;

impl Replicas {
    /// Gives what replica 0 has read of a checkpoint to the others, which bring a learner and an optimizer of the same
    /// kind. Model and optimizer are in memory once more meanwhile.
    ///
    /// # Errors
    ///
    /// If they can't be packed, or don't fit.
    ///
    /// # Panics
    ///
    /// If replica 0 has nothing to give.
    pub fn share_restored(
        &self,
        restored: Option<Restored>,
        learner: &Learner,
        optimizer: &ModuleOptimizer,
    ) -> Result<Restored, RecordError> {
        const WHAT: &str = "the checkpoint of replica 0";
        let read = || restored.as_ref().expect("replica 0 reads the checkpoint");
        let Ok(state) = self.from_first(WHAT, || Ok::<_, Infallible>(read().state.clone()));
        let given = restored.as_ref().map(|restored| &restored.learner);
        let learner = self.share_module(given, learner, WHAT)?;
        let optimizer = match &restored {
            Some(restored) if self.is_lone() => restored.optimizer.clone(),
            Some(restored) => {
                self.broadcast(to_vec(restored.optimizer.into_bytes()?), WHAT);
                restored.optimizer.clone()
            }
            None => {
                let bytes = Bytes::from_bytes_vec(self.broadcast(Vec::new(), WHAT));
                optimizer.clone().from_bytes(bytes)?
            }
        };
        let damaged = restored.map_or_else(Vec::new, |restored| restored.damaged);
        Ok(Restored { state, learner, optimizer, damaged })
    }

    /// Gives a module of replica 0 to the others, which bring one of the same kind.
    ///
    /// # Errors
    ///
    /// If it can't be packed, or doesn't fit.
    pub fn share_module<M: Module>(
        &self,
        module: Option<&M>,
        of_kind: &M,
        what: &str,
    ) -> Result<M, RecordError> {
        if let Some(module) = module {
            if !self.is_lone() {
                self.broadcast(to_vec(module.clone().into_record().into_bytes()?), what);
            }
            return Ok(module.clone());
        }
        let bytes = Bytes::from_bytes_vec(self.broadcast(Vec::new(), what));
        of_kind.clone().try_load_record(ModuleRecord::from_bytes(bytes)?)
    }

    /// The first replica whose weights are not those of replica 0, bit by bit; none if all have the same.
    pub fn first_with_other_weights(&self, learner: &Learner) -> Option<usize> {
        if self.is_lone() {
            return None;
        }
        let hashes = self.gather(hash(learner).to_string(), "the checkpoint");
        hashes.iter().position(|hash| *hash != hashes[0])
    }
}

fn to_vec(bytes: Bytes) -> Vec<u8> {
    bytes.try_into_vec::<u8>().unwrap_or_else(|bytes| bytes.to_vec())
}

fn hash(learner: &Learner) -> blake3::Hash {
    struct Hash(blake3::Hasher);
    impl ModuleVisitor for Hash {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.update(param.val().into_data().as_bytes());
        }
    }
    let mut hash = Hash(blake3::Hasher::new());
    learner.visit(&mut hash);
    hash.0.finalize()
}
