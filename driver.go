package gatepost

import (
	"context"
	"log/slog"
)

// Driver is a family of terminals that speak one protocol. It is a value in the list of package drivers.
type Driver struct {
	Name string // the word after "driver:" in config.yaml
	Help string // one line for people
	// New checks the settings of one device and does no I/O.
	New func(opts Decoder, env Env) (Device, error)
}

// Decoder fills a struct that already holds the defaults from the settings of one device or uplink. Its errors know their
// line. Fields are matched by their `yaml:"name"` tags; a field of type [Secret] may be given as NAME or as NAME_file.
type Decoder func(into any) error

// Env is the little a driver may use of the agent.
type Env struct {
	ID    DeviceID
	Log   *slog.Logger
	State KeyValue
}

// KeyValue is a small durable memory of one device, for stamps, tokens and what a driver learned about a model. It
// survives restarts; a value is lost at worst with the whole book.
type KeyValue interface {
	Get(ctx context.Context, key string) (value string, err error) // empty where never put
	Put(ctx context.Context, key, value string) error
}

// Secret is a password or key from the config. Printing, logging and encoding it says "(secret)"; Reveal is the value.
type Secret struct{ value string }

// NewSecret makes a Secret.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal is the secret itself.
func (s Secret) Reveal() string { return s.value }

func (s Secret) String() string {
	if s.value == "" {
		return ""
	}
	return "(secret)"
}

// GoString keeps %#v quiet.
func (s Secret) GoString() string { return s.String() }

// LogValue keeps slog quiet.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText keeps encoders quiet.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is how a config value comes in.
func (s *Secret) UnmarshalText(b []byte) error { s.value = string(b); return nil }
