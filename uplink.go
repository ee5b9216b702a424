package gatepost

import (
	"context"
	"log/slog"
	"time"
)

// UplinkDriver is a kind of far system. It is a value in the list of package uplink.
type UplinkDriver struct {
	Name string // the word after "driver:" under uplinks in config.yaml
	Help string
	// New checks the settings of one uplink and does no I/O.
	New func(opts Decoder, env UplinkEnv) (Uplink, error)
}

// UplinkEnv is the little an uplink may use of the agent.
type UplinkEnv struct {
	ID    string // the uplink's id in config.yaml
	Agent string // the agent's id
	Log   *slog.Logger
}

// Uplink is one configured far system: settings, no connection.
type Uplink interface {
	// Dial connects, trying its addresses in turn once, announces hello, and from then on hands each command that arrives
	// to take. It does not retry: the agent does. A refused login or a wrong certificate is a Misconfigured [Fault].
	Dial(ctx context.Context, hello Hello, take func(Delivery)) (Link, error)
}

// Link is one connection to a far system. Its methods are safe for several goroutines.
type Link interface {
	// Send returns when the far side confirmed, on this very connection, the first confirmed records of rs, and why the
	// next one did not pass: a Permanent [Fault] means that record never will, anything else that the link failed. Live
	// records (replay false) go out one message each; a backlog (replay true) in batches. Several calls may run at once;
	// they do not wait for each other.
	Send(ctx context.Context, rs []Stored, replay bool) (confirmed int, err error)
	// Announce publishes a changed birth document.
	Announce(ctx context.Context, b Birth) error
	// Beat publishes a heartbeat.
	Beat(ctx context.Context, h Heartbeat) error
	// Done is closed when the connection is lost; Err then says why.
	Done() <-chan struct{}
	Err() error
	// Close says goodbye (offline) where the protocol has a word for it. It may be called twice.
	Close(ctx context.Context) error
}

// Hello is what the agent says of itself at each connect.
type Hello struct {
	Version   string
	Session   string // new at each connect
	Challenge string // for commands; see [Command].Challenge
	Birth     Birth
}

// Delivery is a message from the far side that should be a command. Where it cannot be read as one, Bad says why and
// Command holds what could be read (its ID, if any). Done is called once, after the command is durably in the ledger or
// its answer is on disk; until then the far side may deliver it again.
type Delivery struct {
	Command Command
	Bad     error
	Done    func()
}

// Birth is the birth document: what the agent is and which devices it has.
type Birth struct {
	Agent   string        `json:"agent"`
	Version string        `json:"version"`
	Board   Board         `json:"board"`
	Started time.Time     `json:"started"`
	Zone    string        `json:"timezone"`
	Devices []BirthDevice `json:"devices"`
	Verbs   []string      `json:"commands"`  // that the agent itself takes
	Verify  string        `json:"freshness"` // "issued_at" or "challenge": what the agent can check now
}

// Board is the single-board computer.
type Board struct {
	Model string `json:"model,omitempty"`
	OS    string `json:"os"`
	Arch  string `json:"arch"`
	Host  string `json:"host,omitempty"`
}

// BirthDevice is a device in the birth document.
type BirthDevice struct {
	ID       DeviceID           `json:"id"`
	Driver   string             `json:"driver"`
	Model    string             `json:"model,omitempty"`
	Serial   string             `json:"serial,omitempty"`
	Firmware string             `json:"firmware,omitempty"`
	Doors    int                `json:"doors"`
	Zone     string             `json:"timezone"`
	Verbs    []string           `json:"commands"`
	TTL      map[string]float64 `json:"ttl_s"` // default time to live of verbs, seconds
	State    State              `json:"state"`
}

// Heartbeat is the agent's pulse.
type Heartbeat struct {
	Time      time.Time      `json:"time"`
	Clock     string         `json:"clock"`
	Uptime    float64        `json:"uptime_s"`
	Session   string         `json:"session"`
	Challenge string         `json:"challenge"`
	Backlog   Backlog        `json:"backlog"`
	Devices   map[string]int `json:"devices"` // online, total
	Board     BoardHealth    `json:"board"`
}

// Backlog is what an uplink has not confirmed yet.
type Backlog struct {
	Records int64   `json:"records"`
	Bytes   int64   `json:"bytes"`
	Oldest  float64 `json:"oldest_s"` // age of the oldest waiting record, seconds
	Parked  int64   `json:"parked"`
}

// BoardHealth is what the board says of itself; a nil field could not be read.
type BoardHealth struct {
	TemperatureC *float64 `json:"temperature_c,omitempty"`
	DiskFreeMiB  *float64 `json:"disk_free_mib,omitempty"`
	MemFreeMiB   *float64 `json:"memory_free_mib,omitempty"`
	RSSMiB       *float64 `json:"rss_mib,omitempty"`
}
