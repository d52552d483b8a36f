// Package failing is stores that always fail, for tests of what uses them. Every method returns its store's Err at once and
// does nothing else; a zero Err is tartarus.Unavailable.
package failing

import (
	"context"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/acheron"
	"github.com/tartarus-sandbox/tartarus/internal/hades"
	"github.com/tartarus-sandbox/tartarus/internal/tenant"
	"github.com/tartarus-sandbox/tartarus/internal/themis"
)

func or(err error) error {
	if err == nil {
		return tartarus.Errorf(tartarus.Unavailable, "the store is away")
	}
	return err
}

// Registry is a hades.Registry.
type Registry struct{ Err error }

func (s Registry) PutSandbox(context.Context, tartarus.Sandbox) (int64, error) { return 0, or(s.Err) }
func (s Registry) Sandbox(context.Context, string, string) (tartarus.Sandbox, error) {
	return tartarus.Sandbox{}, or(s.Err)
}
func (s Registry) ListSandboxes(context.Context, hades.Query) (hades.Page, error) {
	return hades.Page{}, or(s.Err)
}
func (s Registry) RemoveSandbox(context.Context, string) error              { return or(s.Err) }
func (s Registry) PutNode(context.Context, hades.Node, time.Duration) error { return or(s.Err) }
func (s Registry) Nodes(context.Context) ([]hades.Node, error)              { return nil, or(s.Err) }
func (s Registry) RemoveNode(context.Context, string) error                 { return or(s.Err) }

// Queue is an acheron.Queue and acheron.Operator. Lease and Await do not wait.
type Queue struct{ Err error }

func (s Queue) Enqueue(context.Context, acheron.Job) (acheron.Job, error) {
	return acheron.Job{}, or(s.Err)
}
func (s Queue) Lease(context.Context, string, int, time.Duration) ([]acheron.Lease, error) {
	return nil, or(s.Err)
}
func (s Queue) Renew(context.Context, acheron.Lease, time.Duration) error { return or(s.Err) }
func (s Queue) Complete(context.Context, acheron.Lease, []byte) error     { return or(s.Err) }
func (s Queue) Fail(context.Context, acheron.Lease, string, bool) error   { return or(s.Err) }
func (s Queue) Cancel(context.Context, string) error                      { return or(s.Err) }
func (s Queue) Job(context.Context, string) (acheron.Job, error)          { return acheron.Job{}, or(s.Err) }
func (s Queue) Await(context.Context, string) (acheron.Job, error)        { return acheron.Job{}, or(s.Err) }
func (s Queue) List(context.Context, acheron.State, int) ([]acheron.Job, error) {
	return nil, or(s.Err)
}
func (s Queue) Requeue(context.Context, string, string) error { return or(s.Err) }
func (s Queue) Purge(context.Context, time.Time) (int, error) { return 0, or(s.Err) }

// Policies is a themis.Store.
type Policies struct{ Err error }

func (s Policies) Put(context.Context, string, []byte, string, int64) (themis.Document, error) {
	return themis.Document{}, or(s.Err)
}
func (s Policies) Get(context.Context, string, int64) (themis.Document, error) {
	return themis.Document{}, or(s.Err)
}
func (s Policies) List(context.Context) ([]themis.Document, error)            { return nil, or(s.Err) }
func (s Policies) History(context.Context, string) ([]themis.Document, error) { return nil, or(s.Err) }
func (s Policies) Remove(context.Context, string, string, int64) error        { return or(s.Err) }
func (s Policies) Revision(context.Context) (int64, error)                    { return 0, or(s.Err) }

// Keys is a tenant.Store.
type Keys struct{ Err error }

func (s Keys) PutKey(context.Context, tenant.Key) error { return or(s.Err) }
func (s Keys) KeyByHash(context.Context, string) (tenant.Key, error) {
	return tenant.Key{}, or(s.Err)
}
func (s Keys) Keys(context.Context, string) ([]tenant.Key, error) { return nil, or(s.Err) }
func (s Keys) RemoveKey(context.Context, string) error            { return or(s.Err) }

// Journal is a hecatoncheir.Journal.
type Journal struct{ Err error }

func (s Journal) Put(context.Context, string, []byte) error      { return or(s.Err) }
func (s Journal) Delete(context.Context, string) error           { return or(s.Err) }
func (s Journal) All(context.Context) (map[string][]byte, error) { return nil, or(s.Err) }
