package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"

	"gatepost"
)

// maxDepth is deeper than any option lies, counted as the YAML library does.
const maxDepth = 32

// parse makes data a tree of nodes and returns its root mapping, or nil after a mistake.
func (l *loader) parse(data []byte) *yaml.Node {
	if len(data) > maxFile {
		l.nowhere("is larger than 1 MiB: not a config file")
		return nil
	}
	var docs []yaml.Node
	if at := notUTF8(data); at >= 0 {
		line := bytes.Count(data[:at], []byte("\n")) + 1
		col := at - bytes.LastIndexByte(data[:at], '\n')
		l.mistakes = append(l.mistakes, Mistake{l.file, line, col, "is not UTF-8 text; save the file as UTF-8"})
		return nil
	}
	err := yaml.Load(data, &docs, yaml.WithAllDocuments(), yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth))))
	if err != nil {
		l.syntax(data, err)
		return nil
	}
	if len(docs) == 0 || len(docs[0].Content) == 0 || empty(docs[0].Content[0]) {
		l.nowhere("is empty; config.yaml.example shows what it holds")
		return nil
	}
	if len(docs) > 1 && !empty(&docs[1]) {
		l.mistake(&docs[1], "a second document starts here; a config is one document, without \"---\" inside")
		return nil
	}
	root := docs[0].Content[0]
	if root.Kind != yaml.MappingNode {
		l.mistake(root, "wants sections: agent:, devices:, uplinks:")
		return nil
	}
	if l.vet(root); len(l.mistakes) > 0 {
		return nil
	}
	return root
}

// notUTF8 is where data stops being UTF-8, -1 if nowhere.
func notUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

func (l *loader) nowhere(text string) {
	l.mistakes = append(l.mistakes, Mistake{File: l.file, Text: text})
}

// vet refuses what YAML has and this file does not need: each is either a slip or an attack.
func (l *loader) vet(n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode:
		l.mistake(n, "\"*%s\" refers to another place, which this file does not use; write the value out, or put it in quotes", n.Value)
		return
	case n.Anchor != "":
		l.mistake(n, "\"&%s\" names a place, which this file does not use; remove it, or put the value in quotes", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		l.mistake(n, "\"%s\" is a type, which this file does not use; remove it, or put the value in quotes", n.Tag)
	}
	if n.Kind == yaml.MappingNode {
		for key := range pairs(n) {
			if key.Kind != yaml.ScalarNode {
				l.mistake(key, "the name of an option is a plain word, followed by \":\"")
			}
		}
	}
	for _, c := range n.Content {
		l.vet(c)
	}
}

// syntax words an error of the YAML parser.
func (l *loader) syntax(data []byte, err error) {
	e, ok := errors.AsType[*yaml.LoadError](err)
	if all, many := errors.AsType[*yaml.LoadErrors](err); many && len(all.Errors) > 0 {
		e, ok = all.Errors[0], true
	}
	if !ok || e.Mark.Line == 0 {
		l.nowhere(strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	m := Mistake{File: l.file, Line: e.Mark.Line, Col: max(e.Mark.Column, 1), Text: "is not YAML here: " + e.Message}
	for _, g := range grammar {
		if strings.Contains(e.Message, g.says) {
			if m.Text = g.text; g.opened && e.ContextMark.Line > 0 {
				m.Line, m.Col = e.ContextMark.Line, max(e.ContextMark.Column, 1)
			}
			break
		}
	}
	if line := lineOf(data, m.Line); strings.HasPrefix(strings.TrimLeft(line, " "), "\t") {
		m.Col = strings.IndexByte(line, '\t') + 1
		m.Text = "a tab; YAML is indented with spaces only"
	}
	l.mistakes = append(l.mistakes, m)
}

// grammar words what the YAML parser says. Where opened is set, the mistake is where the thing began that went wrong.
var grammar = []struct {
	says, text string
	opened     bool
}{
	{"mapping values are not allowed", "a second \":\" on one line, or a line indented too far; put a value that holds \": \" in quotes", false},
	{"did not find expected key", "this line is indented unlike those above it", false},
	{"did not find expected '-'", "this line is indented unlike the entries above it, or misses its \"- \"", false},
	{"block sequence entries are not allowed", "\"- \" cannot stand here; start the entry on a line of its own", false},
	{"could not find expected ':'", "a \":\" is missing after the name of an option", true},
	{"did not find expected ',' or ']'", "a \"[\" is not closed, or a \",\" is missing", true},
	{"did not find expected ',' or '}'", "a \"{\" is not closed, or a \",\" is missing", true},
	{"did not find expected node content", "a \"[\" or \"{\" is not closed, or a value is missing", false},
	{"found unexpected end of stream", "a quote is not closed", true},
	{"unknown escape", "\"\\\" means something special inside \"…\"; use '…' instead", false},
	{"cannot start any token", "this character cannot start a value; put the value in quotes", false},
	{"unknown anchor", "\"*\" means something special at the start of a value; put the value in quotes", false},
	{"max depth", "nested too deeply", false},
	{"control characters", "a control character, which text does not hold", false},
	{"Unicode character", "a character that text does not hold", false},
}

// lineOf is a line of data, counted from 1, without its end.
func lineOf(data []byte, n int) string {
	lines := strings.SplitN(string(data), "\n", n+1)
	if n > len(lines) {
		return ""
	}
	return lines[n-1]
}

// pairs yields the keys and values of a mapping; none of another node.
func pairs(n *yaml.Node) iter.Seq2[*yaml.Node, *yaml.Node] {
	return func(yield func(k, v *yaml.Node) bool) {
		if n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i], n.Content[i+1]) {
				return
			}
		}
	}
}

// empty says whether nothing is written at n.
func empty(n *yaml.Node) bool {
	return n.Kind == 0 || n.Kind == yaml.ScalarNode && n.Tag == "!!null" ||
		n.Kind == yaml.DocumentNode && (len(n.Content) == 0 || empty(n.Content[0]))
}

// scope is what mistakes in a group of options begin and end with.
type scope struct {
	label  string                  // `devices "gate": `
	owner  string                  // ` for driver zk`
	others map[string]reflect.Type // what is an option too, though not here: for "did you mean"
}

// decoding is the filling of one struct.
type decoding struct {
	*loader
	scope
	found  Mistakes
	places map[[2]int]place // by line and column: what should stand there
}

type place struct {
	path string
	typ  reflect.Type
	node *yaml.Node
}

var (
	secretType   = reflect.TypeFor[gatepost.Secret]()
	durationType = reflect.TypeFor[time.Duration]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
	yamlType     = reflect.TypeFor[yaml.Unmarshaler]()
)

// decode fills into, a pointer to a struct that holds the defaults, from the options in n. It goes over the options first,
// since the YAML library knows neither secrets nor an installer's words; the library then fills and judges the values. The
// tree it filled from, secrets included, is returned.
func (l *loader) decode(n *yaml.Node, into any, s scope) (*yaml.Node, Mistakes) {
	d := &decoding{loader: l, scope: s, places: map[[2]int]place{}}
	clean := d.mapping(n, reflect.TypeOf(into).Elem(), "")
	if err := clean.Load(into, yaml.WithKnownFields()); err != nil {
		d.explain(err)
	}
	return clean, d.found
}

func (d *decoding) mistake(n *yaml.Node, path, format string, args ...any) {
	if path != "" {
		path += ": "
	}
	d.found = append(d.found, d.at(n, "%s%s%s", d.label, path, fmt.Sprintf(format, args...)))
}

// mapping is m as the library should see it: options that typ knows, each once, secrets fetched.
func (d *decoding) mapping(m *yaml.Node, typ reflect.Type, path string) *yaml.Node {
	options := optionsOf(typ)
	clean := *m
	clean.Content = nil
	seen := map[string]*yaml.Node{}
	for key, value := range pairs(m) {
		name := key.Value
		typ, known := options[name]
		base, source := name, ""
		if !known {
			for _, suffix := range []string{"_file", "_env"} {
				if b, ok := strings.CutSuffix(name, suffix); ok && options[b] == secretType {
					base, source, typ, known = b, suffix, secretType, true
				}
			}
		}
		if !known {
			in := ""
			if path != "" {
				in = fmt.Sprintf(" in %s", path)
			}
			d.mistake(key, "", "unknown option %q%s%s%s", name, in, d.owner, didYouMean(name, d.candidates(options, path)))
			continue
		}
		if first := seen[base]; first != nil {
			what := "stands here twice"
			if first.Value != name {
				what = fmt.Sprintf("%s is given too", first.Value)
			}
			d.mistake(key, "", "%s: %s, at line %d; keep one of them", name, what, first.Line)
			continue
		}
		seen[base] = key
		value = d.value(value, typ, join(path, name))
		if value != nil && source != "" {
			value = d.secret(value, join(path, name), source)
		}
		if value != nil {
			k := *key
			k.Value = base
			clean.Content = append(clean.Content, &k, value)
		}
	}
	return &clean
}

func (d *decoding) candidates(options map[string]reflect.Type, path string) []string {
	var names []string
	for name, typ := range options {
		names = append(names, name)
		if typ == secretType {
			names = append(names, name+"_file", name+"_env")
		}
	}
	if path == "" {
		names = slices.AppendSeq(names, maps.Keys(d.others))
	}
	return names
}

// value is n as the library should see it, nil after a mistake.
func (d *decoding) value(n *yaml.Node, typ reflect.Type, path string) *yaml.Node {
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if empty(n) {
		d.mistake(n, path, "has no value; write one, or remove the line")
		return nil
	}
	d.places[[2]int{n.Line, n.Column}] = place{path, typ, n}
	if p := reflect.PointerTo(typ); typ == durationType || p.Implements(textType) || p.Implements(yamlType) {
		return n
	}
	switch {
	case typ.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		return d.mapping(n, typ, path)
	case typ.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		clean := *n
		clean.Content = nil
		for i, e := range n.Content {
			if e = d.value(e, typ.Elem(), fmt.Sprintf("%s[%d]", path, i)); e != nil {
				clean.Content = append(clean.Content, e)
			}
		}
		return &clean
	case isNumber(typ) && octal.MatchString(n.Value):
		d.mistake(n, path, "%s starts with a zero; write %s", n.Value, strings.TrimLeft(n.Value[:len(n.Value)-1], "0")+n.Value[len(n.Value)-1:])
		return nil
	}
	return n
}

// octal is a number that YAML reads with base 8, as no installer means it.
var octal = regexp.MustCompile(`^0[0-9]+$`)

func isNumber(typ reflect.Type) bool {
	return typ.Kind() >= reflect.Int && typ.Kind() <= reflect.Float64
}

// explain words what the library said about values.
func (d *decoding) explain(err error) {
	all, ok := errors.AsType[*yaml.LoadErrors](err)
	if !ok {
		d.found = append(d.found, Mistake{File: d.file, Text: d.label + err.Error()})
		return
	}
	for _, e := range all.Errors {
		p, ok := d.places[[2]int{e.Mark.Line, e.Mark.Column}]
		if !ok {
			d.found = append(d.found, Mistake{File: d.file, Line: e.Mark.Line, Col: e.Mark.Column, Text: d.label + "this is not understood"})
			continue
		}
		d.mistake(p.node, p.path, "%s", p.wording(e))
	}
}

// wording says what is wrong with the value at p.
func (p place) wording(err error) string {
	want := p.typ.Kind()
	text := reflect.PointerTo(p.typ).Implements(textType)
	if text || p.typ == durationType || want != reflect.Slice && want != reflect.Struct && want != reflect.Map {
		switch p.node.Kind {
		case yaml.SequenceNode:
			return "wants one value, not a list; put a value that starts with \"[\" in quotes"
		case yaml.MappingNode:
			return "wants one value, not options of its own"
		}
	}
	said := quote(p.node.Value)
	switch {
	case text:
		if cause := errors.Unwrap(err); cause != nil && p.typ != secretType {
			return cause.Error()
		}
	case p.typ == durationType:
		return said + " is not a duration; write a number with its unit, such as 30s, 5m or 1h"
	case want == reflect.Bool:
		return said + " is neither true nor false"
	case isNumber(p.typ):
		return numberWording(p, said)
	case want == reflect.Slice:
		return "wants a list, such as [a, b]"
	case want == reflect.Struct, want == reflect.Map:
		return "wants options of its own, each on a line below it, indented"
	}
	return "this is not understood"
}

func numberWording(p place, said string) string {
	f, err := strconv.ParseFloat(p.node.Value, 64)
	whole := p.typ.Kind() <= reflect.Uint64
	switch {
	case err != nil:
		return said + " is not a number"
	case p.node.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		return said + " is in quotes; write the number without them"
	case whole && f != float64(int64(f)) && f > -1e15 && f < 1e15:
		return said + " is not a whole number"
	case f < 0:
		return said + " is too low"
	}
	return said + " is too high"
}

// quote is s as a mistake shows it, short.
func quote(s string) string {
	if r := []rune(s); len(r) > 40 {
		s = string(r[:40]) + "…"
	}
	return strconv.Quote(s)
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// optionsOf is the options of a struct, by their names in YAML.
func optionsOf(typ reflect.Type) map[string]reflect.Type {
	options := map[string]reflect.Type{}
	if typ.Kind() != reflect.Struct {
		return options
	}
	for f := range typ.Fields() {
		name, flags, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case strings.Contains(flags, "inline"):
			maps.Copy(options, optionsOf(f.Type))
		case name == "":
			options[strings.ToLower(f.Name)] = f.Type
		default:
			options[name] = f.Type
		}
	}
	return options
}
