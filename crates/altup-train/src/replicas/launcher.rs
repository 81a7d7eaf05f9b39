//! Whether this process was started as one of several, and how it joins them.

use super::Replicas;

/// A start by a launcher, as its variables tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// How many processes it started.
    pub size: usize,
    /// The variable that says so.
    pub variable: &'static str,
}

/// Variables of the number of processes: of Open MPI's `mpirun`, of MPICH's and Intel's (and Slurm's PMI-2), of
/// MVAPICH's, and of Slurm's `srun`, which sets it for each step and not for a batch script.
const SIZES: [&str; 4] =
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];

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
        let launches = SIZES.into_iter().filter_map(|variable| {
            let size = value(variable)?.trim().parse().ok()?;
            Some(Self { size, variable })
        });
        launches.into_iter().next().filter(|launch| launch.size > 1)
    }
}

impl Replicas {
    /// Joins the processes that were started with this one; alone if there are none.
    ///
    /// # Errors
    ///
    /// If there are others, and this build or this MPI does not reach them: N runs in one folder would follow.
    pub fn join() -> Result<Self, JoinError> {
        match Launch::here() {
            None => Ok(Self::lone()),
            Some(launch) => join(launch),
        }
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

    fn launch(variables: &[(&str, &str)]) -> Option<(usize, &'static str)> {
        let value = |name: &str| {
            variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned())
        };
        Launch::from_variables(value).map(|launch| (launch.size, launch.variable))
    }

    #[test]
    fn launchers_tell_how_many_they_started() {
        assert_eq!(launch(&[]), None);
        assert_eq!(launch(&[("OMPI_COMM_WORLD_SIZE", "4")]), Some((4, "OMPI_COMM_WORLD_SIZE")));
        assert_eq!(launch(&[("PMI_SIZE", "2")]), Some((2, "PMI_SIZE")));
        assert_eq!(launch(&[("SLURM_STEP_NUM_TASKS", "256")]).unwrap().0, 256);
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
