package hades

import (
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

func TestQuerySelects(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	sb := tartarus.Sandbox{
		Spec: tartarus.Spec{ID: "a", Tenant: "acme", TemplateID: "tpl0", Template: "tiny", Metadata: map[string]string{"team": "red", "empty": ""}},
		Node: "n1", Phase: tartarus.Stopped, CreatedAt: at, StartedAt: at.Add(time.Second), EndedAt: at.Add(time.Minute),
	}
	tests := []struct {
		name string
		q    Query
		want bool
	}{
		{"nothing asked", Query{Tenant: "acme"}, true},
		{"any tenant", Query{Tenant: AnyTenant}, true},
		{"another tenant", Query{Tenant: "beta"}, false},
		{"no tenant", Query{}, false},
		{"its phase", Query{Tenant: "acme", Phases: []tartarus.Phase{tartarus.Running, tartarus.Stopped}}, true},
		{"another phase", Query{Tenant: "acme", Phases: []tartarus.Phase{tartarus.Running}}, false},
		{"its template's id", Query{Tenant: "acme", Template: "tpl0"}, true},
		{"its template's name", Query{Tenant: "acme", Template: "tiny"}, true},
		{"another template", Query{Tenant: "acme", Template: "base"}, false},
		{"another node", Query{Tenant: "acme", Node: "n2"}, false},
		{"metadata", Query{Tenant: "acme", Metadata: map[string]string{"team": "red"}}, true},
		{"metadata that is empty", Query{Tenant: "acme", Metadata: map[string]string{"empty": ""}}, true},
		{"metadata that is absent", Query{Tenant: "acme", Metadata: map[string]string{"absent": ""}}, false},
		{"started after its start", Query{Tenant: "acme", StartedAfter: sb.StartedAt}, false},
		{"started after its creation", Query{Tenant: "acme", StartedAfter: sb.CreatedAt}, true},
		{"ended before its end", Query{Tenant: "acme", EndedBefore: sb.EndedAt}, false},
		{"ended before later", Query{Tenant: "acme", EndedBefore: sb.EndedAt.Add(1)}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.q.Selects(sb); got != tt.want {
				t.Errorf("got %t", got)
			}
		})
	}
	sb.EndedAt = time.Time{}
	if (Query{Tenant: "acme", EndedBefore: at.Add(time.Hour)}).Selects(sb) {
		t.Error("a running sandbox has ended before")
	}
}
