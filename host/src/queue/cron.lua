-- Publishes what a schedule fires: each fire time once, whoever comes first.
-- KEYS 1-7: the topic's stream, state, work, later, later:body, high, low
--   8: cron
-- ARGV 1: the schedule's name   2: its last fire time as the caller knows it,
--   in Unix ms, or empty only to look   3..: fire time in Unix ms, envelope,
--   ..., oldest first
-- Returns { Redis' time in ms, the last fire time now, how many were published }.
-- Afterwards all of them are published and the last one is remembered, or
-- nothing is: not where another was faster, nor before their time by Redis'
-- clock. May be sent twice.
--
-- The hash holds for each schedule, by its name, the last fire time, and under
-- `seen:<name>` when a worker last looked.
local topic, cron, name = topic_at(1), KEYS[8], ARGV[1]

-- A clock set back by less holds the schedule up until it is there again, so
-- that nothing is sent twice; by more, the schedule begins anew.
local BACK_MAX = 60 * 60 * 1000
-- A schedule that none of the workers has any more is forgotten after this,
-- and has missed nothing if it ever returns.
local UNSEEN_MAX = 10 * 60 * 1000

local now, list, known = now_ms(), redis.call('HGETALL', cron), {}
for i = 1, #list, 2 do known[list[i]] = list[i + 1] end

local function time_of(field)
  return tonumber(string.match(known[field] or '', '^%d+$'))
end

local last = time_of(name)
if not last or last > now + BACK_MAX then
  -- Never what a fire time could be: those are whole seconds.
  last = now % 1000 == 0 and now - 1 or now
end

local published = 0
if ARGV[2] ~= '' and tonumber(ARGV[2]) == last and tonumber(ARGV[#ARGV - 1]) <= now then
  -- While two versions of a manifest are about, what the other one has just
  -- fired is fired.
  local fired = {}
  for field, at in pairs(known) do
    if field ~= name and string.sub(field, 1, 5) ~= 'seen:' then fired[at] = true end
  end
  local stream = target(topic, '')
  for i = 3, #ARGV, 2 do
    if not fired[ARGV[i]] then
      add(stream, { 'message', ARGV[i + 1] })
      published = published + 1
    end
  end
  last = tonumber(ARGV[#ARGV - 1])
end
redis.call('HSET', cron, name, whole(last), 'seen:' .. name, whole(now))

for field in pairs(known) do
  local is_other = field ~= name and string.sub(field, 1, 5) ~= 'seen:'
  if is_other and (time_of('seen:' .. field) or 0) < now - UNSEEN_MAX then
    redis.call('HDEL', cron, field, 'seen:' .. field)
  end
end
return { now, last, published }
