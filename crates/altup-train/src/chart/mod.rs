//! Charts as SVG text: [curves and scattered points](XyChart), [bars](BarChart) and
//! [tables of colours](HeatMap).
//!
//! A chart is an SVG document of its own. It needs no script and no other file, follows the reader's light or dark
//! theme, names itself and says what it shows to those who don't see it (`<title>`, `<desc>`), and shows a point's
//! values where a pointer rests on it. It can stand in an HTML page as it is.
//!
//! ```
//! use altup_train::chart::{Axis, Series, Style, XyChart};
//!
//! let chart = XyChart {
//!     title: "Loss".into(),
//!     x: Axis::linear("step"),
//!     y: Axis::log("nats"),
//!     series: vec![Series::new("training", [(1.0, 9.0), (2.0, 7.5)], Style::Line)],
//!     size: XyChart::HALF,
//! };
//! assert!(chart.svg().starts_with("<svg"));
//! ```

mod axis;
mod bar_chart;
mod curve;
mod heat_map;
mod svg;
mod theme;
mod xy_chart;

pub use axis::{Axis, Scale};
pub use bar_chart::{Bar, BarChart, Group};
pub use heat_map::{ColumnGroup, HeatMap};
pub use xy_chart::{Point, Series, Style, XyChart};
