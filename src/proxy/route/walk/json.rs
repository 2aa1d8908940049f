//! XML and JSON: what SQL/XML and SQL/JSON hold in their own clauses.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    self as pg, JsonAggConstructor, JsonArgument, JsonBehavior, JsonFuncExpr, JsonKeyValue, JsonOutput,
    JsonTable, JsonTableColumn, JsonTablePathSpec, JsonValueExpr,
};

use super::Findings;
use crate::proxy::route::verdict::WriteReason;

impl Findings {
    pub(super) fn xml_or_json(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::XmlExpr(xml) => {
                let pg::XmlExpr {
                    xpr: _,
                    op: _,
                    name: _,
                    named_args,
                    arg_names: _,
                    args,
                    xmloption: _,
                    indent: _,
                    r#type: _,
                    typmod: _,
                    location: _,
                } = xml.as_ref();
                self.nodes(named_args);
                self.nodes(args);
            }
            NodeEnum::XmlSerialize(xml) => {
                let pg::XmlSerialize { xmloption: _, expr, type_name, indent: _, location: _ } = xml.as_ref();
                self.child(expr);
                self.types(type_name);
            }
            NodeEnum::JsonFuncExpr(json) => self.json_function(json),
            NodeEnum::JsonTable(table) => self.json_table(table),
            NodeEnum::JsonTableColumn(column) => self.json_table_column(column),
            NodeEnum::JsonTablePathSpec(path) => self.json_path(path),
            NodeEnum::JsonValueExpr(value) => self.json_value(value),
            NodeEnum::JsonBehavior(behavior) => self.json_behavior(behavior),
            NodeEnum::JsonOutput(output) => self.json_output(output),
            NodeEnum::JsonArgument(argument) => {
                let JsonArgument { val, name: _ } = argument.as_ref();
                val.iter().for_each(|value| self.json_value(value));
            }
            NodeEnum::JsonKeyValue(pair) => self.json_pair(pair),
            NodeEnum::JsonIsPredicate(predicate) => {
                let pg::JsonIsPredicate { expr, format: _, item_type: _, unique_keys: _, location: _ } =
                    predicate.as_ref();
                self.child(expr);
            }
            _ => self.json_constructor(node),
        }
    }

    fn json_constructor(&mut self, node: &NodeEnum) {
        match node {
            NodeEnum::JsonParseExpr(parse) => {
                let pg::JsonParseExpr { expr, output, unique_keys: _, location: _ } = parse.as_ref();
                expr.iter().for_each(|value| self.json_value(value));
                output.iter().for_each(|output| self.json_output(output));
            }
            NodeEnum::JsonScalarExpr(scalar) => {
                let pg::JsonScalarExpr { expr, output, location: _ } = scalar.as_ref();
                self.child(expr);
                output.iter().for_each(|output| self.json_output(output));
            }
            NodeEnum::JsonSerializeExpr(serialize) => {
                let pg::JsonSerializeExpr { expr, output, location: _ } = serialize.as_ref();
                expr.iter().for_each(|value| self.json_value(value));
                output.iter().for_each(|output| self.json_output(output));
            }
            NodeEnum::JsonObjectConstructor(object) => {
                let pg::JsonObjectConstructor { exprs, output, absent_on_null: _, unique: _, location: _ } =
                    object;
                self.nodes(exprs);
                output.iter().for_each(|output| self.json_output(output));
            }
            NodeEnum::JsonArrayConstructor(array) => {
                let pg::JsonArrayConstructor { exprs, output, absent_on_null: _, location: _ } = array;
                self.nodes(exprs);
                output.iter().for_each(|output| self.json_output(output));
            }
            NodeEnum::JsonArrayQueryConstructor(array) => {
                let pg::JsonArrayQueryConstructor {
                    query,
                    output,
                    format: _,
                    absent_on_null: _,
                    location: _,
                } = array.as_ref();
                self.child(query);
                output.iter().for_each(|output| self.json_output(output));
            }
            NodeEnum::JsonObjectAgg(aggregate) => {
                let pg::JsonObjectAgg { constructor, arg, absent_on_null: _, unique: _ } = aggregate.as_ref();
                constructor.iter().for_each(|constructor| self.json_aggregate(constructor));
                arg.iter().for_each(|pair| self.json_pair(pair));
            }
            NodeEnum::JsonArrayAgg(aggregate) => {
                let pg::JsonArrayAgg { constructor, arg, absent_on_null: _ } = aggregate.as_ref();
                constructor.iter().for_each(|constructor| self.json_aggregate(constructor));
                arg.iter().for_each(|value| self.json_value(value));
            }
            _ => self.write(WriteReason::UnknownNode),
        }
    }

    fn json_function(&mut self, json: &JsonFuncExpr) {
        let JsonFuncExpr {
            op: _,
            column_name: _,
            context_item,
            pathspec,
            passing,
            output,
            on_empty,
            on_error,
            wrapper: _,
            quotes: _,
            location: _,
        } = json;
        context_item.iter().for_each(|value| self.json_value(value));
        self.child(pathspec);
        self.nodes(passing);
        output.iter().for_each(|output| self.json_output(output));
        on_empty.iter().chain(on_error).for_each(|behavior| self.json_behavior(behavior));
    }

    fn json_table(&mut self, table: &JsonTable) {
        let JsonTable {
            context_item,
            pathspec,
            passing,
            columns,
            on_error,
            alias: _,
            lateral: _,
            location: _,
        } = table;
        context_item.iter().for_each(|value| self.json_value(value));
        pathspec.iter().for_each(|path| self.json_path(path));
        self.nodes(passing);
        self.nodes(columns);
        on_error.iter().for_each(|behavior| self.json_behavior(behavior));
    }

    fn json_table_column(&mut self, column: &JsonTableColumn) {
        let JsonTableColumn {
            coltype: _,
            name: _,
            type_name,
            pathspec,
            format: _,
            wrapper: _,
            quotes: _,
            columns,
            on_empty,
            on_error,
            location: _,
        } = column;
        self.types(type_name);
        pathspec.iter().for_each(|path| self.json_path(path));
        self.nodes(columns);
        on_empty.iter().chain(on_error).for_each(|behavior| self.json_behavior(behavior));
    }

    fn json_path(&mut self, path: &JsonTablePathSpec) {
        let JsonTablePathSpec { string, name: _, name_location: _, location: _ } = path;
        self.child(string);
    }

    fn json_value(&mut self, value: &JsonValueExpr) {
        let JsonValueExpr { raw_expr, formatted_expr, format: _ } = value;
        self.child(raw_expr);
        self.child(formatted_expr);
    }

    fn json_pair(&mut self, pair: &JsonKeyValue) {
        let JsonKeyValue { key, value } = pair;
        self.child(key);
        value.iter().for_each(|value| self.json_value(value));
    }

    fn json_behavior(&mut self, behavior: &JsonBehavior) {
        let JsonBehavior { btype: _, expr, coerce: _, location: _ } = behavior;
        self.child(expr);
    }

    fn json_output(&mut self, output: &JsonOutput) {
        let JsonOutput { type_name, returning: _ } = output;
        self.types(type_name);
    }

    fn json_aggregate(&mut self, aggregate: &JsonAggConstructor) {
        let JsonAggConstructor { output, agg_filter, agg_order, over, location: _ } = aggregate;
        output.iter().for_each(|output| self.json_output(output));
        self.child(agg_filter);
        self.nodes(agg_order);
        over.iter().for_each(|window| self.window(window));
    }
}
