package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gatepost"
	"gatepost/agent/config"
	"gatepost/drivers"
	"gatepost/uplink"
)

// flags are the options of one subcommand. A subcommand defines them, then calls parse or take.
type flags struct {
	*flag.FlagSet
	command command
	args    []string
}

// errHelped is why a subcommand does nothing: its help was asked for and shown.
var errHelped = errors.New("help was shown")

func newFlags(c command, args []string) *flags {
	f := &flags{flag.NewFlagSet(c.name, flag.ContinueOnError), c, args}
	f.SetOutput(os.Stdout)
	return f
}

// parse reads the options and returns the other words. Unlike [flag.FlagSet.Parse] it takes options behind words too, as
// in "gatepost unlock gate --seconds 3", and words its complaints for people.
func (f *flags) parse() (words []string, err error) {
	for args := f.args; len(args) > 0; {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			return append(words, args...), nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			words = append(words, arg)
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		if name == "h" || name == "help" {
			f.help()
			return nil, errHelped
		}
		option := f.Lookup(name)
		if option == nil {
			var names []string
			f.VisitAll(func(o *flag.Flag) { names = append(names, o.Name) })
			return nil, usagef("%s: there is no option --%s%s", f.Name(), name, didYouMean(name, names))
		}
		_, isSwitch := option.Value.(interface{ IsBoolFlag() bool })
		want, _ := flag.UnquoteUsage(option)
		switch {
		case given:
		case isSwitch:
			value = "true"
		case len(args) == 0:
			return nil, usagef("%s: --%s needs a value: %s", f.Name(), name, want)
		default:
			value, args = args[0], args[1:]
		}
		if err := f.Set(name, value); err != nil {
			return nil, usagef("%s: --%s: %q %s", f.Name(), name, value, mismatch(want))
		}
	}
	return words, nil
}

// take is parse for a subcommand that wants the words named, and no others.
func (f *flags) take(names ...string) ([]string, error) {
	words, err := f.parse()
	if err != nil {
		return nil, err
	}
	if len(words) < len(names) {
		return nil, usagef("%s: %s is missing; gatepost help %s says more", f.Name(), names[len(words)], f.Name())
	}
	if len(words) > len(names) {
		return nil, usagef("%s: %q is too much; gatepost help %s says more", f.Name(), words[len(names)], f.Name())
	}
	return words, nil
}

// mismatch says what a value should have been, by the word that stands for it in the help.
func mismatch(want string) string {
	switch want {
	case "N", "SECONDS", "BYTES":
		return "is not a number, or too large a one"
	case "DURATION":
		return "is not a duration like 20ms or 1m30s"
	case "":
		return "is neither true nor false"
	}
	return "is not a " + want
}

func (f *flags) help() {
	w := f.Output()
	fmt.Fprintf(w, "usage: gatepost %s [options]\n%s.\n", strings.TrimSpace(f.Name()+" "+f.command.args), upperFirst(f.command.help))
	first := true
	f.VisitAll(func(o *flag.Flag) {
		if first {
			fmt.Fprint(w, "\noptions:\n")
			first = false
		}
		value, usage := flag.UnquoteUsage(o)
		line := strings.TrimSpace("--" + o.Name + " " + value)
		if o.DefValue != "" && o.DefValue != "0" && o.DefValue != "0s" && o.DefValue != "false" {
			usage += " (default " + o.DefValue + ")"
		}
		fmt.Fprintf(w, "  %-20s %s\n", line, usage)
	})
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// defaultConfig is where the config is looked for.
const defaultConfig = "/etc/gatepost/config.yaml"

// configFlag defines --config.
func (f *flags) configFlag() *string {
	return f.String("config", defaultConfig, "read `FILE`")
}

// jsonFlag defines --json.
func (f *flags) jsonFlag() *bool {
	return f.Bool("json", false, "print JSON, for programs")
}

// agentFlags are the options of a subcommand that asks a running agent.
type agentFlags struct {
	config, dataDir *string
	json            *bool
}

func (f *flags) agentFlags() agentFlags {
	return agentFlags{
		config:  f.String("config", defaultConfig, "ask the agent that runs with `FILE`"),
		dataDir: f.String("data-dir", "", "ask the agent that works in `DIR`, whatever its config"),
		json:    f.jsonFlag(),
	}
}

// dial is a client of the agent that is meant.
func (a agentFlags) dial() (*client, error) {
	dir := *a.dataDir
	if dir == "" {
		c, err := loadConfig(*a.config, config.Kit{})
		if ms, ok := errors.AsType[config.Mistakes](err); ok {
			return nil, &gatepost.Fault{Class: gatepost.Misconfigured, Err: ms,
				Hint: "an agent that runs can be asked all the same: name its data directory with --data-dir"}
		}
		if err != nil {
			return nil, err
		}
		dir = c.Agent.DataDir
	}
	return newClient(dir), nil
}

// loadConfig reads the config with all the drivers and uplinks there are. The data directory comes out absolute, so that
// messages name it for every reader.
func loadConfig(path string, k config.Kit) (*config.Config, error) {
	k.Drivers, k.Uplinks = drivers.All(), uplink.All()
	c, err := config.Load(path, k)
	if err != nil {
		return nil, err
	}
	c.Agent.DataDir, err = filepath.Abs(c.Agent.DataDir)
	return c, err
}

// didYouMean suggests the word nearest to a misspelt one, or nothing.
func didYouMean(word string, words []string) string {
	best, least := "", 3
	for _, w := range words {
		if d := distance(word, w); d < least && 2*d < len(w) {
			best, least = w, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance counts the letters to add, drop or change, or, as one, to swap with their neighbour.
func distance(a, b string) int {
	var before, above []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, above, row = above, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			change := above[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, above[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
