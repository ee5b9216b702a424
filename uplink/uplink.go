// Package uplink is the list of far systems that gatepost can send to. It knows nothing else; cmd/gatepost reads it.
package uplink

import (
	"gatepost"
	"gatepost/uplink/mqtt"
)

// All is the whole list. To add an uplink, add a line.
func All() []gatepost.UplinkDriver {
	return []gatepost.UplinkDriver{
		mqtt.Driver(),
	}
}
