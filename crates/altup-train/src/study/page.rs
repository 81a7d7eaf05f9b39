//! A report as a page that needs no other file.

use super::report::{Document, Section, Table, Value};

pub(super) fn html(document: &Document) -> String {
    let sections: String = document.sections.iter().map(section).collect();
    let facts: String = document
        .facts
        .iter()
        .map(|(name, value)| {
            format!("<div><dt>{}</dt><dd>{}</dd></div>\n", escape(name), escape(value))
        })
        .collect();
    let question = match document.question.is_empty() {
        true => String::new(),
        false => format!("<p class=\"question\">{}</p>\n", escape(&document.question)),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{style}{more}</style>\n</head>\n<body>\n<main>\n\
         <header>\n<h1>{title}</h1>\n{question}<dl class=\"facts\">\n{facts}</dl>\n</header>\n\
         {sections}</main>\n</body>\n</html>\n",
        title = escape(&document.title),
        style = include_str!("../report/report.css"),
        more = include_str!("study.css"),
    )
}

fn section(section: &Section) -> String {
    let text: String =
        section.text.iter().map(|paragraph| format!("<p>{}</p>\n", escape(paragraph))).collect();
    let tables: String = section.tables.iter().map(table).collect();
    let figure = |svg: &str, class: &str| format!("<figure{class}>{svg}</figure>\n");
    let figures: String = section
        .figures
        .iter()
        .map(|shown| figure(&shown.svg, if shown.is_wide { " class=\"wide\"" } else { "" }))
        .collect();
    let figures = match figures.is_empty() {
        true => figures,
        false => format!("<div class=\"study charts\">\n{figures}</div>\n"),
    };
    let heading = escape(&section.heading);
    format!("<section>\n<h2>{heading}</h2>\n{text}{tables}{figures}</section>\n")
}

fn table(table: &Table) -> String {
    let caption = match table.caption.is_empty() {
        true => String::new(),
        false => format!("<h3>{}</h3>\n", escape(&table.caption)),
    };
    let header: String =
        table.header.iter().map(|cell| format!("<th>{}</th>", escape(cell))).collect();
    let row = |row: &Vec<Value>| {
        let cell = |value: &Value| match (value.is_decided, kept_together(&escape(&value.text))) {
            (true, text) => format!("<td><strong>{text}</strong></td>"),
            (false, text) => format!("<td>{text}</td>"),
        };
        format!("<tr>{}</tr>\n", row.iter().map(cell).collect::<String>())
    };
    let rows: String = table.rows.iter().map(row).collect();
    format!(
        "{caption}<div class=\"table\"><table>\n<thead><tr>{header}</tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// A cell whose lines don't break within a figure and its spread, or within an interval.
fn kept_together(text: &str) -> String {
    let mut kept = text.to_owned();
    for word in ["±", "–", "×"] {
        kept = kept.replace(&format!(" {word} "), &format!("&nbsp;{word}&nbsp;"));
        kept = kept.replace(&format!(" {word}"), &format!("&nbsp;{word}"));
    }
    for sign in ["−", "+"] {
        kept = kept.replace(&format!(", {sign}"), &format!(",&nbsp;{sign}"));
    }
    kept
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
