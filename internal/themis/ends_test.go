package themis

import (
	"fmt"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

const head = "apiVersion: " + APIVersion + "\nname: %s\nscope: %s\n%s\nends:\n  %s\n"

func endsPolicy(name, scope, whose, ends string) []byte {
	return fmt.Appendf(nil, head, name, scope, whose, ends)
}

func TestEndsOfPolicies(t *testing.T) {
	s := &set{all: map[string]*Compiled{}, tenant: map[string][]*Compiled{}, template: map[string][]*Compiled{}}
	for name, body := range map[string][]byte{
		"all":  endsPolicy("all", "global", "", "{grace: 10s, maxGrace: 5m, logs: true}"),
		"acme": endsPolicy("acme", "tenant", "tenant: acme", "{grace: 30s, maxGrace: 1m}"),
		"db":   endsPolicy("db", "template", "template: db", "{checkpoint: true, maxGrace: 2m}"),
	} {
		c, err := Compile(body, 1)
		if err != nil {
			t.Fatal(err)
		}
		s.add(name, c)
	}
	e := &Engine{}
	if got := e.Ends(&Input{}); got != (Ends{}) {
		t.Errorf("without policies: %+v", got)
	}
	e.now.Store(s)
	for _, tt := range []struct {
		tenant, template string
		grace, most      time.Duration
		checkpoint       bool
	}{
		{"other", "base", 10 * time.Second, 5 * time.Minute, false},
		{"acme", "base", 30 * time.Second, time.Minute, false},
		{"acme", "db", 30 * time.Second, time.Minute, true},
		{"other", "db", 10 * time.Second, 2 * time.Minute, true},
	} {
		got := e.Ends(&Input{Tenant: TenantInput{Name: tt.tenant}, Template: TemplateInput{Names: []string{tt.template}}})
		if *got.Grace != tt.grace || *got.MaxGrace != tt.most || got.Checkpoint != tt.checkpoint || !got.Logs {
			t.Errorf("%s, %s: grace %s, at most %s, %+v", tt.tenant, tt.template, *got.Grace, *got.MaxGrace, got)
		}
	}
	for name, bad := range map[string]string{"negative": "grace: -1s", "over its bound": "{grace: 2m, maxGrace: 1m}", "unknown": "grce: 1s", "no duration": "grace: soon", "a year": "maxGrace: 9000h"} {
		if _, err := Compile(endsPolicy("bad", "global", "", bad), 1); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
