//! A table of numbers in colours of their size. What is below 0 has another colour.

use super::escape;

/// A row of numbers under every name; colours go from 0 to the largest magnitude.
pub fn matrix(caption: &str, columns: &[String], rows: &[(String, Vec<f64>)]) -> String {
    let largest = rows.iter().flat_map(|(_, cells)| cells).filter(|x| x.is_finite()).fold(0f64, |most, x| most.max(x.abs()));
    let head: String = columns.iter().map(|name| format!("<th scope=\"col\"><span>{}</span></th>", escape(name))).collect();
    let cell = |x: &f64| {
        let (shade, less) = (if largest > 0.0 && x.is_finite() { x.abs() / largest } else { 0.0 }, if *x < 0.0 { " less" } else { "" });
        format!("<td class=\"cell{less}\" style=\"--level:{:.1}%\">{x:.3}</td>", 100.0 * shade)
    };
    let row = |(name, cells): &(String, Vec<f64>)| {
        let cells: String = cells.iter().map(cell).collect();
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(name))
    };
    let rows: String = rows.iter().map(row).collect();
    let caption = escape(caption);
    format!(
        "<div class=\"wide\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\">\n<table class=\"heat digits\">\n\
         <caption>{caption}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
}
