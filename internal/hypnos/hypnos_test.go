package hypnos

import (
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// idle is a sandbox that Default puts to sleep.
func idle() Facts {
	f := Facts{
		Sandbox: tartarus.Sandbox{Phase: tartarus.Running, StartedAt: now.Add(-time.Hour)},
		Used:    now.Add(-10 * time.Minute),
	}
	for t := now.Add(-5 * time.Minute); t.Before(now); t = t.Add(5 * time.Second) {
		f.Samples = append(f.Samples, tartarus.Sample{Time: t, CPUPercent: 1.5})
	}
	return f
}

func TestDecide(t *testing.T) {
	tests := map[string]struct {
		change func(*Facts)
		why    string // empty: it sleeps
	}{
		"idle":                     {func(*Facts) {}, ""},
		"paused":                   {func(f *Facts) { f.Sandbox.Phase = tartarus.Paused }, "does not run"},
		"snapshotting":             {func(f *Facts) { f.Sandbox.Phase = tartarus.Snapshotting }, "does not run"},
		"about to end":             {func(f *Facts) { f.Sandbox.Ending = &tartarus.Ending{} }, "does not run"},
		"must not":                 {func(f *Facts) { f.Sandbox.Lifecycle.Awake = true }, "stay awake"},
		"says never":               {func(f *Facts) { f.Sandbox.Metadata = map[string]string{MetadataKey: MetadataNever} }, "stay awake"},
		"says something else":      {func(f *Facts) { f.Sandbox.Metadata = map[string]string{MetadataKey: "whatever"} }, ""},
		"young":                    {func(f *Facts) { f.Sandbox.StartedAt = now.Add(-59 * time.Second) }, "younger"},
		"old enough":               {func(f *Facts) { f.Sandbox.StartedAt = now.Add(-time.Minute) }, ""},
		"connected":                {func(f *Facts) { f.Connections = 1 }, "connections"},
		"just used":                {func(f *Facts) { f.Used = now.Add(-2*time.Minute + time.Second) }, "used in the last"},
		"used long enough ago":     {func(f *Facts) { f.Used = now.Add(-2 * time.Minute) }, ""},
		"use not known":            {func(f *Facts) { f.Used = time.Time{} }, "used in the last"},
		"the clock went back":      {func(f *Facts) { f.Used = now.Add(time.Hour) }, "used in the last"},
		"failed a while ago":       {func(f *Facts) { f.Tried = now.Add(-time.Minute) }, "could not"},
		"failed long ago":          {func(f *Facts) { f.Tried = now.Add(-time.Hour) }, ""},
		"busy now":                 {func(f *Facts) { f.Samples[len(f.Samples)-1].CPUPercent = 80 }, "80.0 % of a processor"},
		"busy a minute ago":        {func(f *Facts) { f.Samples[len(f.Samples)-12].CPUPercent = 5.1 }, "5.1 %"},
		"busy before":              {func(f *Facts) { f.Samples[0].CPUPercent = 100 }, ""},
		"at the threshold":         {func(f *Facts) { f.Samples[len(f.Samples)-1].CPUPercent = 5 }, ""},
		"never measured":           {func(f *Facts) { f.Samples = nil }, "not measured"},
		"not measured for a while": {func(f *Facts) { f.Samples = f.Samples[:10] }, "not measured"},
		"busy while it was used": {func(f *Facts) {
			f.Used = now.Add(-2 * time.Minute)
			for i := range f.Samples {
				if !f.Samples[i].Time.After(f.Used) {
					f.Samples[i].CPUPercent = 100
				}
			}
		}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := idle()
			tt.change(&f)
			if v := Default().Decide(now, f); v.Sleep != (tt.why == "") || !strings.Contains(v.Why, tt.why) {
				t.Errorf("got %+v, want %q", v, tt.why)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"idleAfter":  func(c *Config) { c.IdleAfter = 0 },
		"cpuPercent": func(c *Config) { c.CPUPercent = -1 },
		"minAge":     func(c *Config) { c.MinAge = -1 },
		"atOnce":     func(c *Config) { c.AtOnce = 0 },
	} {
		c := Default()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
