// Package config reads config.yaml. It finds every mistake at once, each with its line and column and in the installer's
// words, and it starts nothing: drivers and uplinks only check their settings. Package main calls it, at start, on reload
// and for "gatepost check".
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"gatepost"
)

// Defaults of what the file does not say.
const (
	DefaultDataDir   = "/var/lib/gatepost"
	DefaultMaxBytes  = 512 << 20
	DefaultMaxAge    = 30 * 24 * time.Hour
	DefaultFullRead  = time.Hour
	DefaultSyncClock = 30 * time.Second // for "sync_clock: on"
)

// Words of agent.clock.
const (
	ClockAuto    = "auto"    // the board's clock is trusted once the kernel says that it is synchronised
	ClockTrusted = "trusted" // it is always trusted
)

// maxFile is far beyond any site: a thousand terminals take 100 KiB.
const maxFile = 1 << 20

// Config is a file without mistakes.
type Config struct {
	Path     string // as given to Load
	Agent    Agent
	Buffer   Buffer
	Devices  []Device // in the order of the file
	Uplinks  []Uplink // at least one
	Warnings Mistakes // what should be changed but keeps nothing from starting
}

// Agent is the section about the agent itself.
type Agent struct {
	ID       string // letters, digits, "_" and "-", at most 64: a level of MQTT topics
	DataDir  string
	Zone     *time.Location // default for devices
	ZoneName string         // its IANA name
	Clock    string         // ClockAuto or ClockTrusted
}

// Buffer bounds records.db.
type Buffer struct {
	MaxBytes int64
	MaxAge   time.Duration
}

// Device is one configured terminal.
type Device struct {
	ID        gatepost.DeviceID
	Driver    string
	Enabled   bool
	Zone      *time.Location
	ZoneName  string
	Poll      time.Duration // how often its log is looked at; 0: the agent's default, by what the session can do
	FullRead  time.Duration // how often all of its log is read again
	SyncClock time.Duration // its clock is set when it is off by more than this; 0: only on command
	Hash      string        // of all settings, secrets included: equal hashes need no restart. Never logged
	Device    gatepost.Device
}

// Uplink is one configured far system.
type Uplink struct {
	ID         string
	Driver     string
	Required   bool   // records wait for it
	FromOldest bool   // a new one starts at the oldest record kept; else with the next
	Hash       string // as in Device
	Uplink     gatepost.Uplink
}

// Kit is what the file is read with. Fields that are nil have the defaults said here.
type Kit struct {
	Drivers   []gatepost.Driver
	Uplinks   []gatepost.UplinkDriver
	DeviceEnv func(gatepost.DeviceID) gatepost.Env        // nil: only checking; no log, no state
	UplinkEnv func(id, agentID string) gatepost.UplinkEnv // nil: only checking; no log
	Getenv    func(string) string                         // nil: os.Getenv
	BoardID   func() string                               // the default of agent.id; nil: BoardID("/")
	LocalZone func() string                               // IANA name of the board's zone, empty if unknown; nil: LocalZone("/")
}

// Load reads the file at path. Mistakes in it come as [Mistakes].
func Load(path string, k Kit) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		hint := "say which file with --config FILE; config.yaml.example shows what it holds"
		if errors.Is(err, os.ErrPermission) {
			hint = "give the user that gatepost runs as the right to read it"
		}
		return nil, &gatepost.Fault{Class: gatepost.Misconfigured, Hint: hint, Err: err}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, &gatepost.Fault{Class: gatepost.Misconfigured, Err: err}
	}
	return Parse(path, data, k)
}

// Parse is Load of data; name is what mistakes call the file, and secret files are looked for beside it.
func Parse(name string, data []byte, k Kit) (*Config, error) {
	l := &loader{kit: k.withDefaults(), file: name, dir: filepath.Dir(name)}
	c := l.load(data)
	if len(l.mistakes) > 0 {
		l.mistakes.sort()
		return nil, l.mistakes
	}
	l.warnings.sort()
	c.Path, c.Warnings = name, l.warnings
	return c, nil
}

func (k Kit) withDefaults() Kit {
	if k.DeviceEnv == nil {
		k.DeviceEnv = func(id gatepost.DeviceID) gatepost.Env { return gatepost.Env{ID: id, Log: quiet} }
	}
	if k.UplinkEnv == nil {
		k.UplinkEnv = func(id, agent string) gatepost.UplinkEnv {
			return gatepost.UplinkEnv{ID: id, Agent: agent, Log: quiet}
		}
	}
	if k.Getenv == nil {
		k.Getenv = os.Getenv
	}
	if k.BoardID == nil {
		k.BoardID = func() string { return BoardID("/") }
	}
	if k.LocalZone == nil {
		k.LocalZone = func() string { return LocalZone("/") }
	}
	return k
}

// path makes a path of the file absolute or relative to where the file is.
func (l *loader) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(l.dir, p)
}

// ordinal names an entry of a list that has no id yet.
func ordinal(section string, i int) string { return fmt.Sprintf("%s, entry %d", section, i+1) }
