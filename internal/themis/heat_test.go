package themis

import (
	"fmt"
	"testing"

	"github.com/tartarus-sandbox/tartarus"
)

func heatPolicy(name, scope, whose, heat string) []byte {
	return fmt.Appendf(nil, "apiVersion: "+APIVersion+"\nname: %s\nscope: %s\n%s\nheat: %s\n", name, scope, whose, heat)
}

func TestHeatOfPolicies(t *testing.T) {
	s := &set{all: map[string]*Compiled{}, tenant: map[string][]*Compiled{}, template: map[string][]*Compiled{}}
	for name, body := range map[string][]byte{
		"all":  heatPolicy("all", "global", "", "{hint: 2}"),
		"acme": heatPolicy("acme", "tenant", "tenant: acme", "{hint: 3, hottest: hot}"),
		"db":   heatPolicy("db", "template", "template: db", "{hint: 0, hottest: warm}"),
	} {
		c, err := Compile(body, 1)
		if err != nil {
			t.Fatal(err)
		}
		s.add(name, c)
	}
	e := &Engine{}
	if got := e.Heat(&Input{}); got != (Heat{}) {
		t.Errorf("without policies: %+v", got)
	}
	e.now.Store(s)
	for _, tt := range []struct {
		tenant, template string
		hint             int
		hottest          string
	}{
		{"other", "base", 2, ""}, {"acme", "base", 2, "hot"}, {"other", "db", 0, "warm"}, {"acme", "db", 0, "warm"},
	} {
		got := e.Heat(&Input{Tenant: TenantInput{Name: tt.tenant}, Template: TemplateInput{Names: []string{tt.template}}})
		if got.Hint == nil || *got.Hint != tt.hint || got.Hottest != tt.hottest {
			t.Errorf("%s, %s: %+v", tt.tenant, tt.template, got)
		}
	}
	for name, bad := range map[string]string{"negative": "{hint: -1}", "too far": "{hint: 4}", "no heat": "{hottest: tepid}", "nothing": "{}", "unknown": "{hnt: 1}", "a word": "{hint: one}"} {
		if _, err := Compile(heatPolicy("bad", "global", "", bad), 1); !tartarus.Is(err, tartarus.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
