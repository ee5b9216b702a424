package config

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"gatepost"
)

var quiet = slog.New(slog.DiscardHandler)

// loader reads one file.
type loader struct {
	kit       Kit
	file, dir string
	mistakes  Mistakes
	warnings  Mistakes
	agent     Agent
	ids       map[string]*yaml.Node // `devices "gate"`: where it is defined
	taken     map[string]holder     // what a terminal is found by: which device has it
}

type holder struct {
	id   gatepost.DeviceID
	line int
}

// The keys of the sections. Those of devices and uplinks stand beside the options of their driver.
type (
	agentKeys struct {
		ID       string `yaml:"id"`
		DataDir  string `yaml:"data_dir"`
		Timezone zone   `yaml:"timezone"`
		Clock    string `yaml:"clock"`
	}
	bufferKeys struct {
		MaxSize size `yaml:"max_size"`
		MaxAge  span `yaml:"max_age"`
	}
	deviceKeys struct {
		ID        string    `yaml:"id"`
		Driver    string    `yaml:"driver"`
		Enabled   bool      `yaml:"enabled"`
		Timezone  zone      `yaml:"timezone"`
		Poll      span      `yaml:"poll"`
		FullRead  span      `yaml:"full_read"`
		SyncClock threshold `yaml:"sync_clock"`
	}
	uplinkKeys struct {
		ID       string `yaml:"id"`
		Driver   string `yaml:"driver"`
		Required *bool  `yaml:"required"`
		From     string `yaml:"from"`
	}
)

var sections = []string{"agent", "buffer", "devices", "uplinks", "listen"}

func (l *loader) mistake(n *yaml.Node, format string, args ...any) {
	l.mistakes = append(l.mistakes, l.at(n, format, args...))
}

func (l *loader) at(n *yaml.Node, format string, args ...any) Mistake {
	return Mistake{File: l.file, Line: n.Line, Col: n.Column, Text: fmt.Sprintf(format, args...)}
}

func (l *loader) load(data []byte) *Config {
	root := l.parse(data)
	if root == nil {
		return nil
	}
	l.ids, l.taken = map[string]*yaml.Node{}, map[string]holder{}
	parts := map[string]*yaml.Node{}
	for key, value := range pairs(root) {
		switch {
		case !slices.Contains(sections, key.Value):
			l.mistake(key, "unknown section %q%s", key.Value, didYouMean(key.Value, sections))
		case parts[key.Value] != nil:
			l.mistake(key, "%s stands here twice, at line %d too", key.Value, parts[key.Value].Line)
		case !empty(value):
			parts[key.Value] = value
		}
	}
	c := new(Config)
	l.loadAgent(parts["agent"], root)
	c.Agent = l.agent
	c.Buffer = l.loadBuffer(parts["buffer"])
	for i, n := range l.list("devices", parts["devices"]) {
		if d, ok := l.device(n, ordinal("devices", i)); ok {
			c.Devices = append(c.Devices, d)
		}
	}
	uplinks := l.list("uplinks", parts["uplinks"])
	for i, n := range uplinks {
		if u, ok := l.uplink(n, ordinal("uplinks", i), i == 0); ok {
			c.Uplinks = append(c.Uplinks, u)
		}
	}
	if n := parts["uplinks"]; n == nil || n.Kind == yaml.SequenceNode && len(uplinks) == 0 {
		l.mistake(cmp.Or(n, root), "uplinks: there is none, so nothing would leave this box; config.yaml.example shows one")
	} else if !slices.ContainsFunc(c.Uplinks, func(u Uplink) bool { return u.Required }) {
		l.warnings = append(l.warnings, l.at(parts["uplinks"], "uplinks: none is required, so records may be dropped before any uplink confirmed them"))
	}
	if n := parts["listen"]; n != nil && (n.Kind == yaml.ScalarNode || len(n.Content) > 0) {
		l.mistake(n, "listen: this version of gatepost serves nothing to others yet; remove this section")
	}
	return c
}

// list is the entries of a section that is one.
func (l *loader) list(section string, n *yaml.Node) []*yaml.Node {
	if n == nil {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		l.mistake(n, "%s: wants a list; start each entry with \"- id:\"", section)
		return nil
	}
	return n.Content
}

func (l *loader) loadAgent(n, root *yaml.Node) {
	keys := agentKeys{DataDir: DefaultDataDir, Clock: ClockAuto}
	if n == nil {
		n = &yaml.Node{Kind: yaml.MappingNode, Line: root.Line, Column: root.Column}
	}
	if !l.group(n, &keys, "agent") {
		return
	}
	if keys.ID == "" && find(n, "id") == nil {
		if keys.ID = l.kit.BoardID(); keys.ID == "" {
			l.mistake(n, "agent: id is missing, and this board has no number to make one from")
		}
	}
	l.checkID(find(n, "id"), keys.ID, "agent: id: ")
	if keys.Clock != ClockAuto && keys.Clock != ClockTrusted {
		l.mistake(find(n, "clock"), "agent: clock: %s is neither auto nor trusted", quote(keys.Clock))
	}
	if find(n, "timezone") == nil {
		if name := l.kit.LocalZone(); name == "" || isUTC(name) || keys.Timezone.UnmarshalText([]byte(name)) != nil {
			l.mistake(n, "agent: timezone is missing, and the board itself knows only UTC; write that of the terminals, such as Asia/Jakarta")
		}
	}
	l.agent = Agent{ID: keys.ID, DataDir: l.path(keys.DataDir), Zone: keys.Timezone.loc, ZoneName: keys.Timezone.name, Clock: keys.Clock}
}

func (l *loader) loadBuffer(n *yaml.Node) Buffer {
	keys := bufferKeys{MaxSize: DefaultMaxBytes, MaxAge: span(DefaultMaxAge)}
	if n == nil || !l.group(n, &keys, "buffer") {
		return Buffer{DefaultMaxBytes, DefaultMaxAge}
	}
	if keys.MaxSize < 8<<20 {
		l.mistake(find(n, "max_size"), "buffer: max_size: must be 8MiB or more")
	}
	if keys.MaxAge < span(time.Hour) {
		l.mistake(find(n, "max_age"), "buffer: max_age: must be 1h or more")
	}
	return Buffer{int64(keys.MaxSize), time.Duration(keys.MaxAge)}
}

// group decodes a section that is one group of options.
func (l *loader) group(n *yaml.Node, into any, label string) bool {
	if n.Kind != yaml.MappingNode {
		l.mistake(n, "%s: wants options, each on a line below it, indented", label)
		return false
	}
	_, ms := l.decode(n, into, scope{label: label + ": "})
	l.mistakes = append(l.mistakes, ms...)
	return true
}

func (l *loader) device(n *yaml.Node, label string) (Device, bool) {
	keys := deviceKeys{Enabled: true, FullRead: span(DefaultFullRead)}
	before := len(l.mistakes)
	label, own, opts, ok := l.entry("devices", n, label, &keys, func() string { return keys.ID })
	if !ok {
		return Device{}, false
	}
	within := func(key string, have span, low, high time.Duration, words string) {
		if at := find(own, key); at != nil && have != 0 && (time.Duration(have) < low || time.Duration(have) > high) {
			l.mistake(at, "%s%s: must be between %s", label, key, words)
		}
	}
	within("poll", keys.Poll, time.Second, 24*time.Hour, "1s and 24h")
	within("full_read", keys.FullRead, time.Minute, 30*24*time.Hour, "1m and 30d")
	if keys.Timezone.loc == nil {
		keys.Timezone = zone{l.agent.ZoneName, l.agent.Zone}
	}
	d := Device{ID: gatepost.DeviceID(keys.ID), Driver: keys.Driver, Enabled: keys.Enabled,
		Zone: keys.Timezone.loc, ZoneName: keys.Timezone.name, Poll: time.Duration(keys.Poll),
		FullRead: time.Duration(keys.FullRead), SyncClock: time.Duration(keys.SyncClock)}

	names := make([]string, len(l.kit.Drivers))
	for i, drv := range l.kit.Drivers {
		names[i] = drv.Name
	}
	i := l.pick(n, own, keys.Driver, names, label)
	if i < 0 {
		return d, false
	}
	clean, err := l.make(n, opts, label, keys.Driver, optionsOf(reflect.TypeOf(keys)), func(dec gatepost.Decoder) (err error) {
		d.Device, err = l.kit.Drivers[i].New(dec, l.kit.DeviceEnv(d.ID))
		return err
	})
	if err == nil && d.Enabled {
		l.checkTaken(d, opts, label)
	}
	settings := d
	settings.Zone, settings.Device = nil, nil
	d.Hash = hash(fmt.Sprintf("%+v", settings), clean)
	return d, len(l.mistakes) == before
}

func (l *loader) uplink(n *yaml.Node, label string, first bool) (Uplink, bool) {
	keys := uplinkKeys{From: "oldest"}
	before := len(l.mistakes)
	label, own, opts, ok := l.entry("uplinks", n, label, &keys, func() string { return keys.ID })
	if !ok {
		return Uplink{}, false
	}
	if keys.From != "oldest" && keys.From != "now" {
		l.mistake(find(own, "from"), "%sfrom: %s is neither oldest nor now", label, quote(keys.From))
	}
	u := Uplink{ID: keys.ID, Driver: keys.Driver, Required: first, FromOldest: keys.From == "oldest"}
	if keys.Required != nil {
		u.Required = *keys.Required
	}
	names := make([]string, len(l.kit.Uplinks))
	for i, drv := range l.kit.Uplinks {
		names[i] = drv.Name
	}
	i := l.pick(n, own, keys.Driver, names, label)
	if i < 0 {
		return u, false
	}
	clean, _ := l.make(n, opts, label, keys.Driver, optionsOf(reflect.TypeOf(keys)), func(dec gatepost.Decoder) (err error) {
		u.Uplink, err = l.kit.Uplinks[i].New(dec, l.kit.UplinkEnv(u.ID, l.agent.ID))
		return err
	})
	u.Hash = hash(fmt.Sprintf("%s %+v", l.agent.ID, Uplink{ID: u.ID, Driver: u.Driver, Required: u.Required, FromOldest: u.FromOldest}), clean)
	return u, len(l.mistakes) == before
}

// entry decodes what every entry of a section has into keys, and checks its id. It returns the label for mistakes, and
// the entry in two parts: the options that were decoded, and the rest, for the driver.
func (l *loader) entry(section string, n *yaml.Node, label string, keys any, id func() string) (_ string, own, rest *yaml.Node, ok bool) {
	if n.Kind != yaml.MappingNode {
		l.mistake(n, "%s: wants options, the first as \"- id: NAME\"", label)
		return "", nil, nil, false
	}
	o, r := *n, *n
	own, rest = &o, &r
	own.Content, rest.Content = nil, nil
	options := optionsOf(reflect.TypeOf(keys).Elem())
	for key, value := range pairs(n) {
		part := rest
		if _, ok := options[key.Value]; ok {
			part = own
		}
		part.Content = append(part.Content, key, value)
	}
	if at := find(own, "id"); at != nil && at.Kind == yaml.ScalarNode && at.Value != "" {
		label = fmt.Sprintf("%s %q", section, at.Value)
	}
	_, ms := l.decode(own, keys, scope{label: label + ": "})
	l.mistakes = append(l.mistakes, ms...)
	if at := find(own, "id"); at == nil {
		l.mistake(n, "%s: id is missing; give it a short name", label)
	} else if first := l.ids[label]; first != nil {
		l.mistake(n, "%s is already defined at line %d", label, first.Line)
	} else if l.checkID(at, id(), label+": id: ") {
		l.ids[label] = n
	}
	return label + ": ", own, rest, true
}

// idShape is what MQTT takes as a level of a topic everywhere, and a shell without quotes.
var idShape = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (l *loader) checkID(at *yaml.Node, id, label string) bool {
	if at == nil || idShape.MatchString(id) || at.Kind != yaml.ScalarNode || empty(at) {
		return true // or a mistake already
	}
	l.mistake(at, "%s%s: use only letters, digits, \"_\" and \"-\", 64 at most", label, quote(id))
	return false
}

// pick finds a driver by its name, -1 after a mistake.
func (l *loader) pick(n, own *yaml.Node, name string, names []string, label string) int {
	i := slices.Index(names, name)
	if i >= 0 {
		return i
	}
	list := strings.Join(names, ", ")
	if at := find(own, "driver"); at == nil {
		l.mistake(n, "%sdriver is missing; there are: %s", label, list)
	} else if at.Kind == yaml.ScalarNode && !empty(at) {
		l.mistake(at, "%sunknown driver %s%s (there are: %s)", label, quote(name), didYouMean(name, slices.Clone(names)), list)
	}
	return -1
}

// make has a driver check its options. Mistakes that the decoder found come back with their places; another error of the
// driver stands at the option that its text begins with ("address: …"), else at the entry.
func (l *loader) make(n, opts *yaml.Node, label, driver string, others map[string]reflect.Type, create func(gatepost.Decoder) error) (*yaml.Node, error) {
	clean := opts
	var found Mistakes
	err := create(func(into any) error {
		var ms Mistakes
		clean, ms = l.decode(opts, into, scope{label: label, owner: " for driver " + driver, others: others})
		found = append(found, ms...)
		if len(ms) > 0 {
			return ms
		}
		return nil
	})
	l.mistakes = append(l.mistakes, found...)
	if err == nil || len(found) > 0 {
		return clean, err
	}
	for _, e := range split(err) {
		at := n
		if option, _, ok := strings.Cut(e.Error(), ":"); ok {
			if v := find(opts, option); v != nil {
				at = v
			}
		}
		text := e.Error()
		if hint := gatepost.HintOf(e); hint != "" {
			text += "; " + hint
		}
		l.mistake(at, "%s%s", label, text)
	}
	return clean, err
}

// split takes errors.Join apart.
func split(err error) []error {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		return many.Unwrap()
	}
	return []error{err}
}

// checkTaken refuses two devices that are one terminal: the same address (and serial number, where several terminals
// share an address), or the same serial number of one that calls us.
func (l *loader) checkTaken(d Device, opts *yaml.Node, label string) {
	address, serial := find(opts, "address"), find(opts, "serial")
	at, what := address, "address"
	if at == nil {
		at, what = serial, "serial"
	}
	if at == nil || at.Kind != yaml.ScalarNode {
		return
	}
	key := d.Driver + " " + strings.ToLower(at.Value)
	if at == address {
		host, port, err := net.SplitHostPort(at.Value)
		if err != nil {
			host = at.Value
		}
		key = fmt.Sprintf("%s %q %s", d.Driver, strings.ToLower(host), port)
		if serial != nil {
			key += " " + serial.Value
		}
	}
	if first, found := l.taken[key]; found {
		l.mistake(at, "%s%s: %s is already that of %q at line %d", label, what, quote(at.Value), string(first.id), first.line)
		return
	}
	l.taken[key] = holder{d.ID, at.Line}
}

// find is the value at a path ("urls[1]", "tls.ca_file") below a mapping, nil where there is none.
func find(n *yaml.Node, path string) *yaml.Node {
	name, rest, deeper := strings.Cut(path, ".")
	name, index, indexed := strings.Cut(name, "[")
	for key, value := range pairs(n) {
		if key.Value != name {
			continue
		}
		if indexed {
			i, err := strconv.Atoi(strings.TrimSuffix(index, "]"))
			if err != nil || i < 0 || i >= len(value.Content) || value.Kind != yaml.SequenceNode {
				return value
			}
			value = value.Content[i]
		}
		if deeper {
			return find(value, rest)
		}
		return value
	}
	return nil
}

// hash is equal for equal settings.
func hash(settings string, options *yaml.Node) string {
	b := bytes.NewBufferString(strconv.Quote(settings))
	writeNode(b, options)
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:16])
}

// writeNode writes what n means: not where it stands, nor in which order its options do.
func writeNode(b *bytes.Buffer, n *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		values := map[string]*yaml.Node{}
		for key, value := range pairs(n) {
			values[key.Value] = value
		}
		b.WriteByte('{')
		for _, key := range slices.Sorted(maps.Keys(values)) {
			b.WriteString(strconv.Quote(key))
			writeNode(b, values[key])
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for _, e := range n.Content {
			writeNode(b, e)
		}
		b.WriteByte(']')
	default:
		b.WriteString(strconv.Quote(n.Value))
	}
}
