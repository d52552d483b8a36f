package daemon

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestDefaultIsValid(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestValidateNamesWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"relative data":     {func(c *Config) { c.DataDir = "data" }, "dataDir"},
		"api without port":  {func(c *Config) { c.APIAddr = "localhost" }, "apiAddr"},
		"edge without port": {func(c *Config) { c.EdgeAddr = "localhost:" }, "edgeAddr"},
		"domain upper case": {func(c *Config) { c.Domain = "Foo" }, "domain"},
		"domain wildcard":   {func(c *Config) { c.Domain = "*.foo" }, "domain"},
		"runtime":           {func(c *Config) { c.Runtime = "../x" }, "runtime"},
		"node":              {func(c *Config) { c.NodeName = "a/b" }, "nodeName"},
		"level":             {func(c *Config) { c.LogLevel = "loud" }, "logLevel"},
		"format":            {func(c *Config) { c.LogFormat = "xml" }, "logFormat"},
		"timeout":           {func(c *Config) { c.Limits.DefaultTimeout = 48 * time.Hour }, "limits.defaultTimeout"},
		"memory":            {func(c *Config) { c.Limits.DefaultMemoryMB = 64 }, "limits.defaultMemoryMB"},
		"vcpu":              {func(c *Config) { c.Limits.DefaultVCPU = 0 }, "limits.defaultVCPU"},
		"metrics":           {func(c *Config) { c.MetricsAddr = "9090" }, "metricsAddr"},
		"hypnos":            {func(c *Config) { c.Hypnos.IdleAfter = 0 }, "hypnos.idleAfter"},
		"grace":             {func(c *Config) { c.Limits.MaxGrace = time.Hour }, "limits.maxGrace"},
		"end grace":         {func(c *Config) { c.Limits.MaxGrace = time.Second }, "limits.endGrace"},
		"unmasked range":    {func(c *Config) { c.Network.Base = netip.MustParsePrefix("198.18.0.1/15") }, "network.base"},
		"small range":       {func(c *Config) { c.Network.Base, c.Limits.MaxSandboxes = netip.MustParsePrefix("198.18.0.0/22"), 1000 }, "limits.maxSandboxes"},
		"rate of the disk":  {func(c *Config) { c.Rates.DiskMB = -1 }, "rates.diskMB"},
		"rate of packets":   {func(c *Config) { c.Rates.NetworkPackets = 1 }, "rates.networkPackets"},
		"rate of the net":   {func(c *Config) { c.Rates.NetworkMbit = 1 << 40 }, "rates.networkMbit"},
		"slots":             {func(c *Config) { c.Network.Slots = -1 }, "network.slots"},
	} {
		t.Run(name, func(t *testing.T) {
			c := Default()
			tc.change(&c)
			err := c.Validate()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error that names %s", err, tc.want)
			}
		})
	}
}

func TestValidateReportsAllAtOnce(t *testing.T) {
	c := Default()
	c.LogLevel, c.Domain = "loud", ""
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "logLevel") || !strings.Contains(err.Error(), "domain") {
		t.Fatalf("got %v", err)
	}
}

func TestEdgeMayBeOff(t *testing.T) {
	c := Default()
	c.EdgeAddr = ""
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
}

// TestRatesBecomeLimiters holds the arithmetic between what an operator writes and what a device is told.
func TestRatesBecomeLimiters(t *testing.T) {
	c := Default()
	if f := FirecrackerConfig(c); f.DiskLimit != nil || f.NetLimit != nil {
		t.Errorf("by default: %+v %+v", f.DiskLimit, f.NetLimit)
	}
	c.Rates = Rates{DiskMB: 20, NetworkMbit: 100, NetworkPackets: 5000}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	f := FirecrackerConfig(c)
	if d := f.DiskLimit; d == nil || d.Ops != nil || d.Bandwidth.Size != 20<<20 || d.Bandwidth.RefillMS != 1000 {
		t.Errorf("of the disk: %+v", d)
	}
	if n := f.NetLimit; n == nil || n.Bandwidth.Size != 12_500_000 || n.Ops.Size != 5000 || n.Ops.RefillMS != 1000 {
		t.Errorf("of the network: %+v", n)
	}
}
