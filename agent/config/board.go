package config

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// BoardID names this board, "gp-" and 8 hex digits, by what a cloned SD card does not carry along: the serial number that
// the board's firmware tells (Raspberry Pi and most others), else the address of its first network card. Only where
// there is neither the system's machine id has to do. The numbers of a PC's mainboard are left out: only root may read
// them, and the name must not depend on who asks. It is empty where nothing is known. root is "/" but in tests.
func BoardID(root string) string {
	read := func(path string) string {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return ""
		}
		return strings.Trim(string(b), "\x00 \n")
	}
	for _, source := range []struct{ name, value string }{
		{"serial", read("proc/device-tree/serial-number")},
		{"mac", firstMAC(root, read)},
		{"machine", read("etc/machine-id")},
	} {
		if strings.Trim(source.value, "0:-") != "" {
			sum := sha256.Sum256([]byte("gatepost " + source.name + " " + source.value))
			return "gp-" + hex.EncodeToString(sum[:4])
		}
	}
	return ""
}

// firstMAC is the address of the first network card that is built in (not on USB) and has one of its own.
func firstMAC(root string, read func(string) string) string {
	cards, err := filepath.Glob(filepath.Join(root, "sys/class/net/*/device"))
	if err != nil {
		return ""
	}
	slices.Sort(cards)
	for _, card := range cards {
		dir, err := filepath.Rel(root, filepath.Dir(card))
		if err != nil {
			return ""
		}
		bus, _ := os.Readlink(filepath.Join(card, "subsystem")) // none: not USB
		own := read(filepath.Join(dir, "addr_assign_type")) == "0"
		if mac := read(filepath.Join(dir, "address")); own && mac != "" && filepath.Base(bus) != "usb" {
			return mac
		}
	}
	return ""
}

// LocalZone is the IANA name of the board's time zone, empty where it cannot be told. root is "/" but in tests.
func LocalZone(root string) string {
	if tz := strings.TrimPrefix(os.Getenv("TZ"), ":"); tz != "" {
		return tz
	}
	if target, err := os.Readlink(filepath.Join(root, "etc/localtime")); err == nil {
		if _, name, ok := strings.Cut(target, "zoneinfo/"); ok {
			return name
		}
	}
	b, err := os.ReadFile(filepath.Join(root, "etc/timezone"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// isUTC says whether a zone is what a board has that nobody told where it is.
func isUTC(name string) bool {
	switch strings.TrimPrefix(name, "Etc/") {
	case "UTC", "UCT", "Universal", "Zulu", "GMT", "GMT0", "Greenwich":
		return true
	}
	return false
}
