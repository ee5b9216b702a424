package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"

	"gatepost"
)

// unlock opens a door through the running agent. What is asked on this board is fresh and authorised by whoever may open
// the agent's socket.
func unlock(ctx context.Context, f *flags) error {
	opts := f.agentFlags()
	door := f.Int("door", 0, "open door `N`, from 1; needed only where the terminal has several")
	seconds := f.Float64("seconds", 5, "keep it open for `SECONDS`")
	words, err := f.take("DEVICE")
	if err != nil {
		return err
	}
	args := map[string]any{"seconds": *seconds}
	f.Visit(func(o *flag.Flag) {
		if o.Name == "door" { // door 0 is a mistake that the agent shall see
			args["door"] = *door
		}
	})
	c, err := opts.dial()
	if err != nil {
		return err
	}
	raw, err := c.post(ctx, "/v1/command", map[string]any{"command": "unlock", "device": words[0], "args": args})
	if err != nil {
		return err
	}
	var r gatepost.Result
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("the agent's answer: %w", err)
	}
	if *opts.json {
		if err := printJSON(raw); err != nil {
			return err
		}
	}
	return unlockOutcome(r, *opts.json)
}

// unlockOutcome says what came of it, unless the JSON has said so already.
func unlockOutcome(r gatepost.Result, quiet bool) error {
	say := func(code int, format string, args ...any) error {
		if quiet {
			return exitError{errSaid, code}
		}
		return exitError{fmt.Errorf(format, args...), code}
	}
	why := ""
	if r.Error != nil {
		why = ": " + r.Error.Message
	}
	switch r.Status {
	case gatepost.StatusDone:
		if !quiet {
			var did struct {
				Door    int     `json:"door"`
				Seconds float64 `json:"seconds"`
			}
			if err := json.Unmarshal(r.Data, &did); err != nil {
				return fmt.Errorf("the agent's answer: %w", err)
			}
			fmt.Printf("%s: door %d is open for %g s\n", r.Device, did.Door, did.Seconds)
		}
		return nil
	case gatepost.StatusUnknown:
		return say(exitFailed, "%s may or may not have opened%s", r.Device, why)
	}
	return say(exitRefused, "%s was not opened (%s)%s", r.Device, r.Status, why)
}
