-- What the queue's scripts share. KEYS[1] is the prefix of all its keys, which ends in a hash tag: they are in one slot of a cluster.
--
-- job:ID               hash: body (JSON as enqueued, without payload), payload, state, attempt, token, max, node, tenant, key, digest, seq,
--                      deadline, enqueued, until, ended (microseconds), why, result
-- key:LEN:TENANT:KEY   id of the job that has this idempotency key
-- wait:LEN:NODE:TENANT sorted set of the jobs that can be handed out, by seq
-- round:NODE           list of the tenants that have such jobs, the next one first
-- timers               sorted set of open jobs by when something happens to them: end of lease, of backoff, deadline
-- open                 sorted set of the open jobs, by seq
-- state:STATE          sorted sets of the ended jobs, by when they ended
-- seq, token           counters
-- events               stream: w NODE (there is work of a tenant that had none), e ID (it ended); trimmed, readers fall back to looking
local P, call = KEYS[1], redis.call
local time = call('TIME')
local now = time[1] * 1000000 + time[2]

-- A plain tostring keeps 14 digits, which is too few.
local function num(x) return string.format('%.0f', x) end
local function job_key(id) return P .. 'job:' .. id end
local function idem_key(tenant, key) return P .. 'key:' .. #tenant .. ':' .. tenant .. ':' .. key end
local function wait_key(node, tenant) return P .. 'wait:' .. #node .. ':' .. node .. ':' .. tenant end
local function round_key(node) return P .. 'round:' .. node end

local function event(kind, what)
  call('XADD', P .. 'events', 'MAXLEN', '~', 100000, '*', kind, what)
end

local function schedule(id, at)
  if at > 0 then call('ZADD', P .. 'timers', num(at), id) else call('ZREM', P .. 'timers', id) end
end

-- line_up makes a job one that can be handed out. A tenant's first one puts the tenant at the end of the round, and is news: whoever takes jobs
-- and leaves some lets others know.
local function line_up(id, node, tenant, seq)
  local waiting = wait_key(node, tenant)
  if call('ZCARD', waiting) == 0 then
    call('RPUSH', round_key(node), tenant)
    event('w', node)
  end
  call('ZADD', waiting, seq, id)
end

local function step_out(id, node, tenant)
  local waiting = wait_key(node, tenant)
  if call('ZREM', waiting, id) == 1 and call('ZCARD', waiting) == 0 then
    call('LREM', round_key(node), 1, tenant)
  end
end

-- read returns what the functions below need of a job, nil when there is none.
local function read(id)
  local j = call('HMGET', job_key(id), 'state', 'token', 'until', 'attempt', 'max', 'deadline', 'node', 'tenant', 'seq', 'enqueued')
  if not j[1] then return nil end
  return {id = id, state = j[1], token = j[2], ends = tonumber(j[3]), attempt = tonumber(j[4]), max = tonumber(j[5]),
    deadline = tonumber(j[6]), node = j[7], tenant = j[8], seq = j[9], enqueued = j[10]}
end

-- finish ends an open job.
local function finish(j, state, why, result)
  if j.state == 'waiting' then step_out(j.id, j.node, j.tenant) end
  call('HSET', job_key(j.id), 'state', state, 'why', why, 'result', result, 'ended', num(now))
  call('ZREM', P .. 'timers', j.id)
  call('ZREM', P .. 'open', j.id)
  call('ZADD', P .. 'state:' .. state, num(now), j.id)
  event('e', j.id)
end

-- release gives a leased job back, to wait until ready or dead when it had its last attempt.
local function release(j, why, ready)
  if j.attempt >= j.max then
    finish(j, 'dead', why, '')
  elseif j.deadline > 0 and j.deadline <= now then
    finish(j, 'dead', 'deadline', '')
  else
    call('HSET', job_key(j.id), 'state', 'waiting', 'why', why)
    if ready > now then
      if j.deadline > 0 and j.deadline < ready then ready = j.deadline end
      schedule(j.id, ready)
    else
      line_up(j.id, j.node, j.tenant, j.seq)
      schedule(j.id, j.deadline)
    end
  end
end

-- pass makes happen to an open job what is due.
local function pass(j)
  if j.state == 'leased' then
    release(j, 'unavailable: node ' .. j.node .. ' did not report in time', now)
  elseif j.deadline > 0 and j.deadline <= now then
    finish(j, 'dead', 'deadline', '')
  else
    line_up(j.id, j.node, j.tenant, j.seq)
    schedule(j.id, j.deadline)
  end
end

-- tick does so for all jobs that are due, at most so many, and returns how many there were.
local function tick(most)
  local due = call('ZRANGEBYSCORE', P .. 'timers', '-inf', num(now), 'LIMIT', 0, most)
  for _, id in ipairs(due) do
    local j = read(id)
    if j then pass(j) else call('ZREM', P .. 'timers', id) end -- evicted or deleted by hand
  end
  return #due
end

-- current is read for whoever tells others what it saw: what is due has happened, though no tick came yet.
local function current(id)
  local j = read(id)
  if j and (j.state == 'leased' and j.ends <= now or j.state == 'waiting' and j.deadline > 0 and j.deadline <= now) then
    pass(j)
    return read(id)
  end
  return j
end

-- held returns the job if the lease with this token holds.
local function held(id, token)
  local j = current(id)
  if j and j.state == 'leased' and j.token == token then return j end
  return nil
end

