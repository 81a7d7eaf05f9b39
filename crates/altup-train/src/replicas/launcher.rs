//! Whether this process was started as one of several, and how it joins them.

use super::{Replicas, engine};

/// A start by a launcher, as its variables tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// How many processes it started.
    pub size: usize,
    /// The number of this one.
    pub rank: usize,
    /// The variable that says how many they are.
    pub variable: &'static str,
}

/// Variables of the number of processes, and of a process's own: of Open MPI's `mpirun`, of MPICH's and Intel's (and
/// Slurm's PMI-2), of MVAPICH's, and of Slurm's `srun`, which sets the first for each step and not for a batch script.
const VARIABLES: [[&str; 2]; 4] = [
    ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"],
    ["PMI_SIZE", "PMI_RANK"],
    ["MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"],
    ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID"],
];

/// Why this process can't join the others.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// This build can't.
    #[error(
        "{} processes of this program were started together ({}), and this build can't join them: build it with \
         `--features mpi`, or start it alone", .0.size, .0.variable
    )]
    NotCompiled(Launch),
    /// MPI doesn't start.
    #[error("MPI doesn't start in this process")]
    NotStarted,
    /// The processes don't find each other.
    #[error(
        "{} processes were started together ({}), and MPI finds {found}: this program was built for another MPI ({mpi}) \
         than that of the launcher", launch.size, launch.variable
    )]
    Apart {
        /// What the launcher says.
        launch: Launch,
        /// How many MPI finds.
        found: usize,
        /// The MPI of this program.
        mpi: String,
    },
}

impl Launch {
    /// The launch of this process as one of several; none if it was started alone.
    pub fn here() -> Option<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(value: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |variable| value(variable)?.trim().parse().ok();
        let mut launches = VARIABLES.into_iter().filter_map(|[variable, own]| {
            let size = number(variable)?;
            Some(Self { size, rank: number(own).unwrap_or(0), variable })
        });
        launches.next().filter(|launch| launch.size > 1)
    }

    /// Ends this process, after `error` in its turn: what it can't do, those that were started with it can't either.
    pub fn refuse(&self, error: &str) -> ! {
        engine::say_in_turn(self.rank, self.size, error);
        std::process::exit(1)
    }
}

impl Replicas {
    /// Joins the processes that were started with this one.
    ///
    /// # Errors
    ///
    /// If this build or this MPI does not reach them: N runs in one folder would follow.
    pub fn join(launch: Launch) -> Result<Self, JoinError> {
        join(launch)
    }
}

#[cfg(not(feature = "mpi"))]
fn join(launch: Launch) -> Result<Replicas, JoinError> {
    Err(JoinError::NotCompiled(launch))
}

#[cfg(feature = "mpi")]
fn join(launch: Launch) -> Result<Replicas, JoinError> {
    Ok(Replicas::new(std::rc::Rc::new(super::mpi::Mpi::start(launch)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Option<Launch> {
        Launch::from_variables(|name| {
            variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn launchers_tell_how_many_they_started() {
        assert_eq!(launch(&[]), None);
        let expected = |size, rank, variable| Some(Launch { size, rank, variable });
        let open_mpi = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3")];
        assert_eq!(launch(&open_mpi), expected(4, 3, "OMPI_COMM_WORLD_SIZE"));
        assert_eq!(launch(&[("PMI_SIZE", "2")]), expected(2, 0, "PMI_SIZE"));
        let slurm = [("SLURM_STEP_NUM_TASKS", "256"), ("SLURM_PROCID", "9")];
        assert_eq!(launch(&slurm), expected(256, 9, "SLURM_STEP_NUM_TASKS"));
    }

    #[test]
    fn one_process_and_a_batch_script_are_alone() {
        assert_eq!(launch(&[("OMPI_COMM_WORLD_SIZE", "1")]), None);
        // mpirun of one process within a step of Slurm's with several.
        let nested = [("OMPI_COMM_WORLD_SIZE", "1"), ("SLURM_STEP_NUM_TASKS", "8")];
        assert_eq!(launch(&nested), None);
        assert_eq!(launch(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), None);
    }
}
