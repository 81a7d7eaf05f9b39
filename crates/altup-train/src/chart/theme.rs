//! Colours and fonts, as the style sheet that every chart holds.
//!
//! Shapes name a class, never a colour: what a class looks like depends on the reader's theme.

/// The colours of series, on a light and on a dark ground: Okabe and Ito's, told apart with every kind of colour
/// vision, each darkened or lightened until it stands out from its ground by 3 to 1.
const SERIES: [(&str, &str); 6] = [
    ("#0072b2", "#4fb0ea"),
    ("#d55e00", "#ff8a3d"),
    ("#008a64", "#2cc79a"),
    ("#b5559a", "#e48fcb"),
    ("#9a7200", "#e6b422"),
    ("#5f5bd0", "#a5a2ff"),
];

/// How a text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Font {
    /// What the chart is called.
    Title,
    /// A name: of a curve, a row, a point.
    Name,
    /// What stands beside: axes, units, numbers.
    Note,
}

impl Font {
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Title => "t",
            Self::Name => "n",
            Self::Note => "o",
        }
    }

    /// Pixels.
    pub(super) fn size(self) -> f64 {
        match self {
            Self::Title => 16.0,
            Self::Name | Self::Note => 12.5,
        }
    }
}

/// The classes that draw a series' lines and fill its areas, such as `s2` and `f2`. The colours repeat after the
/// sixth.
pub(super) fn series_color(color: usize) -> usize {
    color % SERIES.len()
}

/// How often the colours have been gone through: series of one colour differ by their dashes.
pub(super) fn dashes(color: usize) -> Option<&'static str> {
    match color / SERIES.len() {
        0 => None,
        1 => Some("7 4"),
        _ => Some("2 4"),
    }
}

/// What does not depend on a series, on one ground.
struct Ground {
    page: &'static str,
    ink: &'static str,
    muted: &'static str,
    grid: &'static str,
}

const LIGHT: Ground = Ground { page: "#ffffff", ink: "#24292f", muted: "#5c646d", grid: "#e4e7eb" };
const DARK: Ground = Ground { page: "#161b22", ink: "#e6edf3", muted: "#9aa4af", grid: "#30363d" };

/// The style sheet. All of it is below the class of a chart, so that it leaves the page around it alone.
pub(super) fn style_sheet() -> String {
    let (title, small) = (Font::Title.size(), Font::Note.size());
    let light = colors(&LIGHT, SERIES.iter().map(|color| color.0));
    let dark = colors(&DARK, SERIES.iter().map(|color| color.1));
    format!(
        ".altup-chart{{font-family:system-ui,-apple-system,'Segoe UI',sans-serif;font-size:{small}px}}\
         .altup-chart .t{{font-size:{title}px;font-weight:600}}\
         .altup-chart .l{{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}}\
         {light}@media(prefers-color-scheme:dark){{{dark}}}"
    )
}

fn colors(ground: &Ground, series: impl Iterator<Item = &'static str>) -> String {
    let Ground { page, ink, muted, grid } = ground;
    let fixed = format!(
        ".altup-chart .p{{fill:{page}}}.altup-chart .t,.altup-chart .n{{fill:{ink}}}\
         .altup-chart .o{{fill:{muted}}}.altup-chart .g{{stroke:{grid}}}.altup-chart .a{{stroke:{muted}}}"
    );
    let series = series.enumerate().map(|(number, color)| {
        format!(".altup-chart .s{number}{{stroke:{color}}}.altup-chart .f{number}{{fill:{color}}}")
    });
    fixed + &series.collect::<String>()
}
