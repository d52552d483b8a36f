// Package handover is what a host tells a virtual machine before its agent can be reached over the network: on the kernel
// command line when it boots, and in a frame on its network cable after it was restored under another address. Both ends believe
// nothing of each other but what Validate lets through.
package handover

import (
	"encoding/base64"
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Machine is who the guest is and what it runs.
type Machine struct {
	Args     []string `json:"args,omitempty"` // the first process; empty means the agent
	Env      []string `json:"env,omitempty"`
	Hostname string   `json:"hostname,omitempty"`
	PIDs     int64    `json:"pids,omitempty"` // most processes and threads beside the agent's; 0 is no limit

	Interface *Interface `json:"interface,omitempty"` // nil: no network

	// Only in frames:
	Entropy []byte    `json:"entropy,omitempty"`
	Time    time.Time `json:"time,omitzero"`
}

// Interface is the guest's only network device.
type Interface struct {
	MAC        string       `json:"mac"`
	Address    netip.Prefix `json:"address"`
	Gateway    netip.Addr   `json:"gateway"`
	GatewayMAC string       `json:"gatewayMAC,omitempty"`
	MTU        int          `json:"mtu,omitempty"`
}

// parameter is our word on the kernel command line. The dot makes the kernel take it for a module's and pass it on to nobody.
const parameter = "tartarus.machine="

// MaxParameter bounds the parameter: a kernel command line has 2048 characters on x86, and drivers need a third of them.
const MaxParameter = 1400

// Parameter is m as one word of a kernel command line. A machine whose arguments and environment do not fit is tartarus.TooLarge.
func (m Machine) Parameter() (string, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return "", tartarus.Errorf(tartarus.Invalid, "describe machine: %w", err)
	}
	p := parameter + base64.RawURLEncoding.EncodeToString(b)
	if len(p) > MaxParameter {
		return "", tartarus.Errorf(tartarus.TooLarge, "arguments and environment of the first process take %d characters on the kernel command line, and %d fit", len(p), MaxParameter)
	}
	return p, nil
}

// FromCommandLine finds the machine on a kernel command line.
func FromCommandLine(line string) (Machine, error) {
	for _, word := range strings.Fields(line) {
		value, ok := strings.CutPrefix(word, parameter)
		if !ok {
			continue
		}
		b, err := base64.RawURLEncoding.DecodeString(value)
		if err != nil {
			return Machine{}, tartarus.Errorf(tartarus.Invalid, "read %s: %w", parameter, err)
		}
		return decode(b)
	}
	return Machine{}, tartarus.Errorf(tartarus.NotFound, "the kernel command line has no %s", parameter)
}

func decode(b []byte) (Machine, error) {
	var m Machine
	if err := json.Unmarshal(b, &m); err != nil {
		return m, tartarus.Errorf(tartarus.Invalid, "read machine: %w", err)
	}
	return m, m.Validate()
}

// Validate refuses what a guest could not carry out.
func (m Machine) Validate() error {
	if m.PIDs < 0 {
		return tartarus.Errorf(tartarus.Invalid, "the limit of processes is negative")
	}
	i := m.Interface
	if i == nil {
		return nil
	}
	if _, err := net.ParseMAC(i.MAC); err != nil {
		return tartarus.Errorf(tartarus.Invalid, "hardware address: %w", err)
	}
	if _, err := net.ParseMAC(i.GatewayMAC); i.GatewayMAC != "" && err != nil {
		return tartarus.Errorf(tartarus.Invalid, "gateway's hardware address: %w", err)
	}
	if !i.Address.IsValid() || i.MTU < 0 || i.MTU > 65535 {
		return tartarus.Errorf(tartarus.Invalid, "address %s, mtu %d", i.Address, i.MTU)
	}
	return nil
}
