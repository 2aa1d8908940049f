//! What there is a target for: a ratio or a time, and on which side of it is well.

pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) is: f64,
    pub(crate) target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    pub(crate) fn new(what: impl Into<String>, is: f64, target: Target) -> Figure {
        Figure { what: what.into(), is, target }
    }

    fn is_met(&self) -> bool {
        match self.target {
            Target::AtLeast(least) => self.is >= least,
            Target::AtMost(most) => self.is <= most,
        }
    }
}

pub(crate) fn print(figures: &[Figure]) {
    println!("\n| Bellwether's | is | target | |\n|---|---|---|---|");
    for figure in figures {
        let target = match figure.target {
            Target::AtLeast(least) => format!("at least {least}"),
            Target::AtMost(most) => format!("at most {most}"),
        };
        let met = if figure.is_met() { "met" } else { "missed" };
        println!("| {} | {:.2} | {target} | {met} |", figure.what, figure.is);
    }
}
