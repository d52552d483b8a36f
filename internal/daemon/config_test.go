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
