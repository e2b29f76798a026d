//! One file as syn sees it: what it declares, what it imports, and every path it names.

use super::source::module_of;
use std::collections::{BTreeMap, BTreeSet};
use syn::buffer::{Cursor, TokenBuffer};
use syn::ext::IdentExt;
use syn::parse::{ParseStream, Parser};
use syn::visit::{self, Visit};
use syn::{
    Attribute, GenericArgument, Ident, ImplItemFn, Item, ItemImpl, ItemMod, ItemUse, PathArguments, Type, UseTree,
};

/// The segments of a path. The first one is empty for a path that begins with `::`.
pub(super) type Segments = Vec<String>;

pub(super) struct Parsed {
    pub(super) file: String,
    /// The file's own module, then its inline modules.
    pub(super) scopes: Vec<Scope>,
    pub(super) mentions: Vec<Mention>,
    pub(super) impls: Vec<Impl>,
    pub(super) has_unsafe: bool,
}

#[derive(Default)]
pub(super) struct Scope {
    pub(super) module: Segments,
    /// Structs, enums, unions, traits and aliases, which can also begin a path.
    pub(super) types: BTreeSet<String>,
    pub(super) aliases: BTreeMap<String, Segments>,
    /// Functions, constants, statics and macros.
    pub(super) values: BTreeSet<String>,
    pub(super) children: Vec<Child>,
    pub(super) imports: Vec<Import>,
    /// A macro expands to items here, whose names syn can't know.
    pub(super) has_item_macro: bool,
}

pub(super) struct Child {
    pub(super) name: String,
    pub(super) is_test: bool,
}

pub(super) struct Import {
    pub(super) path: Segments,
    /// `None` for a glob.
    pub(super) name: Option<String>,
}

/// A path of at least two segments, or an import.
pub(super) struct Mention {
    pub(super) module: Segments,
    pub(super) path: Segments,
    pub(super) is_test: bool,
}

pub(super) struct Impl {
    pub(super) module: Segments,
    pub(super) self_type: Segments,
    /// The trait, and the types among its arguments.
    pub(super) implemented: Option<Segments>,
    pub(super) arguments: Vec<Segments>,
    pub(super) is_test: bool,
}

pub(super) fn parse(file: &str, text: &str) -> Parsed {
    let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut parsed = Parsed {
        file: file.to_owned(),
        scopes: vec![Scope { module: module_of(file), ..Scope::default() }],
        mentions: Vec::new(),
        impls: Vec::new(),
        has_unsafe: has_word(text, "unsafe"),
    };
    Reader { parsed: &mut parsed, scope: 0, is_test: false }.visit_file(&syntax);
    parsed
}

/// Whether `word` is among the tokens of `text`, which comments are not.
fn has_word(text: &str, word: &str) -> bool {
    fn find(mut cursor: Cursor<'_>, word: &str) -> bool {
        while !cursor.eof() {
            if let Some((inside, _, _, next)) = cursor.any_group() {
                if find(inside, word) {
                    return true;
                }
                cursor = next;
            } else if cursor.ident().is_some_and(|(ident, _)| ident == word) {
                return true;
            } else {
                let Some((_, next)) = cursor.token_tree() else { break };
                cursor = next;
            }
        }
        false
    }
    let mut is_found = false;
    let search = |input: ParseStream<'_>| {
        is_found = find(input.cursor(), word);
        Ok(())
    };
    // The search leaves the tokens unread, which syn calls an error.
    let _ = Parser::parse_str(search, text);
    is_found
}

struct Reader<'a> {
    parsed: &'a mut Parsed,
    scope: usize,
    is_test: bool,
}

impl Reader<'_> {
    fn scope(&mut self) -> &mut Scope {
        &mut self.parsed.scopes[self.scope]
    }

    fn mention(&mut self, path: Segments) {
        let module = self.scope().module.clone();
        self.parsed.mentions.push(Mention { module, path, is_test: self.is_test });
    }

    /// Paths in the tokens of a macro or an attribute, which syn doesn't parse.
    fn scan(&mut self, mut cursor: Cursor<'_>) {
        while !cursor.eof() {
            if let Some((inside, _, _, next)) = cursor.any_group() {
                self.scan(inside);
                cursor = next;
            } else if let Some((first, next)) = cursor.ident() {
                let mut path = vec![name(&first)];
                cursor = next;
                while let Some((segment, next)) = separator(cursor).and_then(Cursor::ident) {
                    path.push(name(&segment));
                    cursor = next;
                }
                if path.len() > 1 {
                    self.mention(path);
                }
            } else {
                let Some((_, next)) = cursor.token_tree() else { break };
                cursor = next;
            }
        }
    }

    fn import(&mut self, prefix: &Segments, tree: &UseTree) {
        let extended = |ident: &Ident| {
            let is_self = ident == "self" && !prefix.is_empty();
            if is_self { prefix.clone() } else { [prefix.as_slice(), &[name(ident)]].concat() }
        };
        let (path, binding) = match tree {
            UseTree::Path(path) => return self.import(&extended(&path.ident), &path.tree),
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.import(prefix, tree)),
            UseTree::Glob(_) => (prefix.clone(), None),
            UseTree::Name(named) => (extended(&named.ident), extended(&named.ident).last().cloned()),
            UseTree::Rename(renamed) => (extended(&renamed.ident), Some(name(&renamed.rename))),
        };
        self.mention(path.clone());
        self.scope().imports.push(Import { path, name: binding });
    }

    fn declare(&mut self, item: &Item) {
        let is_test = self.is_test;
        let scope = self.scope();
        scope.types.extend(declared_type(item).map(name));
        scope.values.extend(declared_value(item).map(name));
        match item {
            Item::Type(item) => scope.aliases.extend(named_type(&item.ty).map(|path| (name(&item.ident), path))),
            Item::Mod(item) => scope.children.push(Child { name: name(&item.ident), is_test }),
            Item::Macro(item) => scope.has_item_macro |= item.ident.is_none(),
            _ => {}
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let was_test = self.is_test;
        self.is_test |= attributes(item).iter().any(is_cfg_test);
        self.declare(item);
        visit::visit_item(self, item);
        self.is_test = was_test;
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let parent = self.scope;
        if item.content.is_some() {
            let module = [self.scope().module.as_slice(), &[name(&item.ident)]].concat();
            self.parsed.scopes.push(Scope { module, ..Scope::default() });
            self.scope = self.parsed.scopes.len() - 1;
        }
        visit::visit_item_mod(self, item);
        self.scope = parent;
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let root = item.leading_colon.map(|_| String::new());
        self.import(&root.into_iter().collect(), &item.tree);
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let module = self.scope().module.clone();
        let self_type = named_type(&item.self_ty).unwrap_or_default();
        let is_generic = item.generics.type_params().any(|param| self_type == [name(&param.ident)]);
        if !self_type.is_empty() && !is_generic {
            let implemented = item.trait_.as_ref().map(|(_, path, _)| path);
            let arguments = implemented.map(type_arguments).unwrap_or_default();
            let implemented = implemented.map(segments);
            self.parsed.impls.push(Impl { module, self_type, implemented, arguments, is_test: self.is_test });
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        let was_test = self.is_test;
        self.is_test |= item.attrs.iter().any(is_cfg_test);
        visit::visit_impl_item_fn(self, item);
        self.is_test = was_test;
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let named = segments(path);
        if named.len() > 1 {
            self.mention(named);
        }
        visit::visit_path(self, path);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        visit::visit_attribute(self, attribute);
        if let syn::Meta::List(list) = &attribute.meta {
            self.scan(TokenBuffer::new2(list.tokens.clone()).begin());
        }
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        visit::visit_macro(self, called);
        self.scan(TokenBuffer::new2(called.tokens.clone()).begin());
    }
}

fn name(ident: &Ident) -> String {
    ident.unraw().to_string()
}

fn segments(path: &syn::Path) -> Segments {
    let root = path.leading_colon.map(|_| String::new());
    root.into_iter().chain(path.segments.iter().map(|segment| name(&segment.ident))).collect()
}

fn declared_type(item: &Item) -> Option<&Ident> {
    match item {
        Item::Struct(item) => Some(&item.ident),
        Item::Enum(item) => Some(&item.ident),
        Item::Union(item) => Some(&item.ident),
        Item::Trait(item) => Some(&item.ident),
        Item::Type(item) => Some(&item.ident),
        _ => None,
    }
}

fn declared_value(item: &Item) -> Option<&Ident> {
    match item {
        Item::Fn(item) => Some(&item.sig.ident),
        Item::Const(item) => Some(&item.ident),
        Item::Static(item) => Some(&item.ident),
        Item::Macro(item) => item.ident.as_ref(),
        _ => None,
    }
}

/// The path of a type, also behind a reference.
fn named_type(type_: &Type) -> Option<Segments> {
    match type_ {
        Type::Path(path) if path.qself.is_none() => Some(segments(&path.path)),
        Type::Reference(reference) => named_type(&reference.elem),
        Type::Paren(paren) => named_type(&paren.elem),
        Type::Group(group) => named_type(&group.elem),
        _ => None,
    }
}

/// The types in `Trait<A, B>`.
fn type_arguments(path: &syn::Path) -> Vec<Segments> {
    let Some(PathArguments::AngleBracketed(arguments)) = path.segments.last().map(|segment| &segment.arguments) else {
        return Vec::new();
    };
    let type_of = |argument: &GenericArgument| match argument {
        GenericArgument::Type(type_) => named_type(type_),
        _ => None,
    };
    arguments.args.iter().filter_map(type_of).collect()
}

/// What follows `::`.
fn separator(cursor: Cursor<'_>) -> Option<Cursor<'_>> {
    let (first, next) = cursor.punct()?;
    let (second, next) = next.punct()?;
    (first.as_char() == ':' && second.as_char() == ':').then_some(next)
}

fn is_cfg_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.parse_args::<Ident>().is_ok_and(|ident| ident == "test")
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
