//! An SVG document as it is written, and the room that its texts take.

use std::fmt::{Display, Write};

use super::theme::{Font, style_sheet};

/// Where a text stands from its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A rectangle, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Area {
    /// The square of twice `radius` around a place.
    pub(super) fn around((x, y): (f64, f64), radius: f64) -> Self {
        Self { left: x - radius, top: y - radius, right: x + radius, bottom: y + radius }
    }

    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    pub(super) fn lies_in(&self, other: &Self) -> bool {
        self.left >= other.left
            && self.right <= other.right
            && self.top >= other.top
            && self.bottom <= other.bottom
    }
}

/// A document in the making.
pub(super) struct Svg {
    width: f64,
    body: String,
    texts: Vec<Area>,
}

impl Svg {
    /// A document of this width.
    pub(super) fn new(width: f64) -> Self {
        Self { width, body: String::new(), texts: Vec::new() }
    }

    /// Where texts stand so far.
    pub(super) fn texts(&self) -> &[Area] {
        &self.texts
    }

    /// A text. `place` is at its vertical middle.
    pub(super) fn text(&mut self, font: Font, anchor: Anchor, place: (f64, f64), text: &str) {
        let anchored = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        // The middle of small letters lies this far above their base line.
        let base = place.1 + 0.35 * font.size();
        let _ = writeln!(
            self.body,
            "<text class=\"{}\" x=\"{}\" y=\"{}\"{anchored}>{}</text>",
            font.class(),
            pixels(place.0),
            pixels(base),
            escaped(text)
        );
        self.texts.push(text_area(font, anchor, place, text));
    }

    /// A straight line.
    pub(super) fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(pixels);
        let _ = writeln!(
            self.body,
            "<line class=\"{class}\" x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>"
        );
    }

    /// A line through points. `more` are further attributes.
    pub(super) fn path(&mut self, class: &str, points: &[(f64, f64)], more: &str) {
        let _ = writeln!(self.body, "<path class=\"{class}\"{more} d=\"{}\"/>", way(points));
    }

    /// The area within points.
    pub(super) fn area(&mut self, class: &str, points: &[(f64, f64)], more: &str) {
        let _ = writeln!(self.body, "<path class=\"{class}\"{more} d=\"{}Z\"/>", way(points));
    }

    /// A dot, which says `hint` where a pointer rests on it.
    pub(super) fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64, hint: &str) {
        let [x, y, radius] = [x, y, radius].map(pixels);
        let _ = writeln!(
            self.body,
            "<circle class=\"{class}\" cx=\"{x}\" cy=\"{y}\" r=\"{radius}\"><title>{}</title></circle>",
            escaped(hint)
        );
    }

    /// A filled rectangle, which says `hint` where a pointer rests on it.
    pub(super) fn rectangle(&mut self, class: &str, area: Area, more: &str, hint: &str) {
        let Area { left, top, right, bottom } = area;
        let [x, y, width, height] = [left, top, right - left, bottom - top].map(pixels);
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\"{more} x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\">\
             <title>{}</title></rect>",
            escaped(hint)
        );
    }

    /// The document, of a height that is known by now.
    pub(super) fn document(self, height: f64, title: &str, description: &str) -> String {
        let [width, height] = [self.width, height].map(pixels);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"altup-chart\" role=\"img\" width=\"{width}\" \
             height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n<title>{}</title>\n<desc>{}</desc>\n\
             <style>{}</style>\n<rect class=\"p\" width=\"{width}\" height=\"{height}\"/>\n{}</svg>\n",
            escaped(title),
            escaped(description),
            style_sheet(),
            self.body
        )
    }
}

fn way(points: &[(f64, f64)]) -> String {
    let mut way = String::with_capacity(12 * points.len());
    for (index, &(x, y)) in points.iter().enumerate() {
        let letter = if index == 0 { 'M' } else { 'L' };
        let _ = write!(way, "{letter}{} {}", pixels(x), pixels(y));
    }
    way
}

/// The room of a text.
pub(super) fn text_area(font: Font, anchor: Anchor, (x, y): (f64, f64), text: &str) -> Area {
    let width = text_width(font, text);
    let left = match anchor {
        Anchor::Start => x,
        Anchor::Middle => x - width / 2.0,
        Anchor::End => x - width,
    };
    let half = 0.6 * font.size();
    Area { left, top: y - half, right: left + width, bottom: y + half }
}

/// How wide a text is in a wide font (DejaVu Sans). The reader's own is not known.
pub(super) fn text_width(font: Font, text: &str) -> f64 {
    let bold = if font == Font::Title { 1.1 } else { 1.0 };
    let of_letter = |letter: char| match letter {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | ' ' => 0.33,
        'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '/' | '-' => 0.42,
        'm' | 'w' | 'M' | 'W' | '%' | '@' | '+' | '−' | '=' | '×' | '<' | '>' => 0.9,
        'A'..='Z' => 0.72,
        letter if letter.is_ascii() => 0.63,
        // Whole squares, as Chinese letters are.
        letter if letter >= '\u{2e80}' => 1.05,
        _ => 0.66,
    };
    bold * font.size() * text.chars().map(of_letter).sum::<f64>()
}

/// A text in lines that are no wider than `width`, where it has spaces to break at.
pub(super) fn lines(font: Font, text: &str, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line)
                if text_width(font, line) + text_width(font, &format!(" {word}")) <= width =>
            {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A text that is no wider than `width`: its end gives way to dots.
pub(super) fn shortened(font: Font, text: &str, width: f64) -> String {
    if text_width(font, text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for letter in text.chars() {
        if text_width(font, &kept) + text_width(font, &format!("{letter}…")) > width {
            break;
        }
        kept.push(letter);
    }
    kept.trim_end().to_owned() + "…"
}

/// A length or place to a tenth of a pixel.
fn pixels(value: f64) -> impl Display {
    (10.0 * value).round() / 10.0
}

/// Text as XML. XML has no way to write control characters; they become a space.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            letter if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => {
                escaped.push(' ');
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_can_hold_anything() {
        let mut svg = Svg::new(100.0);
        svg.text(Font::Name, Anchor::Start, (10.0, 20.0), "a<b>&\"c\"\u{1}");
        svg.dot("f0", (1.0, 2.0), 3.0, "</title><script>");
        let document = svg.document(50.0, "<t>", "d&d");
        assert!(
            document.contains("<text class=\"n\" x=\"10\" y=\"24.4\">a&lt;b&gt;&amp;\"c\" </text>")
        );
        assert!(document.contains("<title>&lt;/title&gt;&lt;script&gt;</title>"));
        assert!(document.contains("<title>&lt;t&gt;</title>\n<desc>d&amp;d</desc>"));
        assert!(document.contains("width=\"100\" height=\"50\" viewBox=\"0 0 100 50\""));
    }

    #[test]
    fn a_path_goes_through_its_points() {
        let mut svg = Svg::new(100.0);
        svg.path("l", &[(0.0, 1.04), (2.5, 3.0)], "");
        svg.area("f0", &[(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)], " fill-opacity=\"0.2\"");
        assert!(svg.body.contains("d=\"M0 1L2.5 3\""), "{}", svg.body);
        assert!(svg.body.contains("fill-opacity=\"0.2\" d=\"M0 0L1 0L1 1Z\""), "{}", svg.body);
    }

    #[test]
    fn texts_are_broken_at_spaces_and_shortened() {
        let width = text_width(Font::Note, "two words");
        assert_eq!(lines(Font::Note, "two words more", width), ["two words", "more"]);
        assert_eq!(lines(Font::Note, "unbreakable", 1.0), ["unbreakable"]);
        assert_eq!(shortened(Font::Note, "two words", width), "two words");
        let short = shortened(Font::Note, "two words and more", width);
        assert!(short.ends_with('…') && text_width(Font::Note, &short) <= width, "{short}");
    }

    #[test]
    fn areas_overlap_where_they_share_more_than_an_edge() {
        let area = Area::around((0.0, 0.0), 1.0);
        assert!(area.overlaps(&Area::around((1.5, 0.0), 1.0)));
        assert!(!area.overlaps(&Area::around((2.0, 0.0), 1.0)));
        assert!(area.lies_in(&Area::around((0.5, 0.5), 1.5)));
        assert!(!area.lies_in(&Area::around((0.5, 0.5), 1.0)));
    }
}
