// Package mqtt carries records up and commands down over MQTT 3.1.1, in the words of protocol v1 (docs/protocol.md).
// The agent dials it, sends through it and decides when to dial again; this package never retries, never stores and
// never executes a command.
//
// One link is one connection of one paho client. A record counts as confirmed only by the PUBACK that came on the
// connection it was sent on, which holds by construction: the client, its message ids and its memory end with the link.
package mqtt

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"gatepost"
)

// Driver is the MQTT uplink.
func Driver() gatepost.UplinkDriver {
	return gatepost.UplinkDriver{
		Name: "mqtt",
		Help: "an MQTT 3.1.1 broker, protocol v1 (docs/protocol.md)",
		New:  New,
	}
}

type options struct {
	URL           string          `yaml:"url"`
	URLs          []string        `yaml:"urls"`
	Username      string          `yaml:"username"`
	Password      gatepost.Secret `yaml:"password"`
	CAFile        string          `yaml:"ca_file"`
	CertFile      string          `yaml:"cert_file"`
	KeyFile       string          `yaml:"key_file"`
	ServerName    string          `yaml:"server_name"` // in the broker's certificate, where it is not the host of the url
	ClientID      string          `yaml:"client_id"`   // default: the agent's id
	TopicRoot     string          `yaml:"topic_root"`
	Keepalive     time.Duration   `yaml:"keepalive"`
	Timeout       time.Duration   `yaml:"timeout"` // for connecting to one url, login included, and for each write
	Window        int             `yaml:"window"`  // live messages in flight
	BatchRecords  int             `yaml:"batch_records"`
	BatchBytes    int             `yaml:"batch_bytes"` // the largest message, before compression
	Gzip          bool            `yaml:"gzip"`        // for batches
	AllowCommands bool            `yaml:"allow_commands"`
}

// uplink is one configured broker, or several that stand in for each other.
type uplink struct {
	options
	env    gatepost.UplinkEnv
	addrs  []*url.URL
	topics topics

	mu      sync.Mutex
	tenures map[*url.URL]*tenure // by address: brokers do not share their retained messages
}

// New checks the settings of one uplink. Certificate files are read at each connect, so that renewed ones are taken up.
func New(decode gatepost.Decoder, env gatepost.UplinkEnv) (gatepost.Uplink, error) {
	u := &uplink{
		options: options{
			TopicRoot:     "gatepost/v1",
			ClientID:      env.Agent,
			Keepalive:     30 * time.Second,
			Timeout:       10 * time.Second,
			Window:        100,
			BatchRecords:  100,
			BatchBytes:    128 << 10,
			AllowCommands: true,
		},
		env:     env,
		tenures: make(map[*url.URL]*tenure),
	}
	if err := decode(&u.options); err != nil {
		return nil, err
	}
	if err := u.check(); err != nil {
		return nil, err
	}
	u.topics = newTopics(u.TopicRoot, env.Agent)
	return u, nil
}

// check reports every mistake, each with the name of its option in front.
func (u *uplink) check() error {
	var errs []error
	bad := func(option, format string, args ...any) {
		errs = append(errs, fmt.Errorf(option+": "+format, args...))
	}

	addrs, option := u.URLs, "urls"
	switch {
	case u.URL != "" && len(u.URLs) > 0:
		bad("urls", "give url or urls, not both")
	case u.URL != "":
		addrs, option = []string{u.URL}, "url"
	case len(u.URLs) == 0:
		bad("url", `is missing: the broker's address, like "mqtts://broker.example:8883"`)
	}
	secure := false
	for _, s := range addrs {
		a, err := parseAddr(s)
		if err != nil {
			bad(option, "%w", err)
			continue
		}
		secure = secure || a.Scheme == "mqtts"
		u.addrs = append(u.addrs, a)
	}

	if u.Password.Reveal() != "" && u.Username == "" {
		bad("username", "is missing; a password without one is never sent")
	}
	if (u.CertFile == "") != (u.KeyFile == "") {
		bad("cert_file", "cert_file and key_file belong together: give both or neither")
	}
	if !secure && len(u.addrs) > 0 {
		for _, o := range []struct{ name, value string }{{"ca_file", u.CAFile}, {"cert_file", u.CertFile}, {"server_name", u.ServerName}} {
			if o.value != "" {
				bad(o.name, "needs a url that starts with mqtts://")
			}
		}
	}
	if u.ClientID == "" {
		bad("client_id", "is empty")
	}
	for level := range strings.SplitSeq(u.TopicRoot, "/") {
		if !fitsTopic(level) {
			bad("topic_root", `%q is not a topic: want words with "/" between them, no "+" or "#"`, u.TopicRoot)
			break
		}
	}
	if strings.HasPrefix(u.TopicRoot, "$") {
		bad("topic_root", `%q: topics that start with "$" are the broker's own`, u.TopicRoot)
	}
	if len(u.TopicRoot) > 200 {
		bad("topic_root", "is longer than 200 bytes")
	}
	inRange := func(option string, value, low, high int) {
		if value < low || value > high {
			bad(option, "%d is out of range: %d to %d", value, low, high)
		}
	}
	inRange("window", u.Window, 1, 10_000)
	inRange("batch_records", u.BatchRecords, 1, 10_000)
	inRange("batch_bytes", u.BatchBytes, 1<<10, 1<<20)
	between := func(option string, value, low, high time.Duration) {
		if value < low || value > high {
			bad(option, "%v is out of range: %v to %v", value, low, high)
		}
	}
	between("keepalive", u.Keepalive, 5*time.Second, time.Hour)
	between("timeout", u.Timeout, 100*time.Millisecond, 2*time.Minute)
	return errors.Join(errs...)
}

// parseAddr reads a broker's address. Scheme becomes mqtt or mqtts, the port is filled in.
func parseAddr(s string) (*url.URL, error) {
	a, err := url.Parse(s)
	if err != nil || a.Host == "" || a.Hostname() == "" {
		return nil, fmt.Errorf(`%q is not an address like "mqtts://broker.example:8883"`, redact(s))
	}
	port := "1883"
	switch a.Scheme {
	case "mqtt", "tcp":
		a.Scheme = "mqtt"
	case "mqtts", "ssl", "tls":
		a.Scheme, port = "mqtts", "8883"
	default:
		return nil, fmt.Errorf("%q starts with %q; want mqtt:// or, encrypted, mqtts://", a.Redacted(), a.Scheme+"://")
	}
	if a.User != nil {
		return nil, fmt.Errorf("%q: put username and password on lines of their own", a.Redacted())
	}
	if a.Path != "" && a.Path != "/" || a.RawQuery != "" || a.Fragment != "" {
		return nil, fmt.Errorf("%q: nothing may follow the port", s)
	}
	if a.Port() == "" {
		a.Host = net.JoinHostPort(a.Hostname(), port)
	}
	return &url.URL{Scheme: a.Scheme, Host: a.Host}, nil
}

// redact hides what may be a password in an address that could not be parsed.
func redact(s string) string {
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		return "…" + s[at:]
	}
	return s
}

// topics are the agent's own, in full.
type topics struct {
	base, state, register, heartbeat, batch, command, deviceCommands string
}

func newTopics(root, agent string) topics {
	base := root + "/" + agent + "/"
	return topics{
		base:           base,
		state:          base + "state",
		register:       base + "register",
		heartbeat:      base + "heartbeat",
		batch:          base + "batch",
		command:        base + "command",
		deviceCommands: base + "devices/+/command",
	}
}

// of is the topic of a record.
func (t topics) of(d gatepost.DeviceID, k gatepost.Kind) string {
	if d == "" {
		return t.base + string(k)
	}
	return t.base + "devices/" + string(d) + "/" + string(k)
}

// fitsTopic says whether s can be one level of a topic that is published to.
func fitsTopic(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '/' || r == '+' || r == '#' || r == '\uFFFD' {
			return false
		}
	}
	return true
}
