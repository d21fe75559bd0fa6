-- Script for wrk that sends the requests of one case and prints the figures as one line of JSON.
--
-- Arguments behind the address: the number of connections, the kind of requests, the path before each
-- key, then for
--   fixed  the key, and the number of pipelined requests
--   random the number of hot keys, and the number of pipelined requests
--   cold   the number of keys, and the number of the first
--   mixed  the number of hot keys, that of cold keys, and the number of the first cold key
--
-- Responses are not checked: that would cost more than the requests. run_cases.py counts the reads from
-- Redis instead. cases.py makes the same keys; keep both in step.

-- One of this many requests is for a cold key.
local cold_every = 10
-- Exponent of Zipf's law: the n-th hot key is requested n^-skew times as often as the first.
local skew = 0.99

-- Returns the bytes of a request before and after the key.
local function split_request(path)
    local whole = wrk.format("GET", path .. "@")
    local at = whole:find("@", 1, true)
    return whole:sub(1, at - 1), whole:sub(at + 1)
end

-- Returns the cumulative share of requests for each hot key and those before it.
local function compute_shares(keys)
    local result, sum = {}, 0
    for number = 1, keys do
        sum = sum + number ^ -skew
        result[number] = sum
    end
    for number = 1, keys do
        result[number] = result[number] / sum
    end
    return result
end

-- Returns the index of a random hot key, by these shares.
local function draw(shares)
    local wanted, low, high = math.random(), 1, #shares
    while low < high do
        local middle = math.floor((low + high) / 2)
        if shares[middle] < wanted then
            low = middle + 1
        else
            high = middle
        end
    end
    return low
end

local kinds = {}

-- Without a function `request` wrk calls `wrk.format` once, and no Lua for each request.
function kinds.fixed(path, key, times)
    local batch = wrk.format("GET", path .. key):rep(times)
    wrk.format = function() return batch end
end

function kinds.random(path, keys, times)
    local head, tail = split_request(path .. "hot:")
    local last, parts = tonumber(keys) - 1, {}
    math.randomseed(os.time())
    function request()
        for index = 1, times do
            parts[index] = head .. string.format("%012d", math.random(0, last)) .. tail
        end
        return table.concat(parts)
    end
end

function kinds.cold(path, keys, first)
    local head, tail = split_request(path)
    local next_number = tonumber(first)
    function request()
        local number = next_number % keys
        next_number = next_number + 1
        return head .. "cold:" .. string.format("%d", number) .. tail
    end
end

function kinds.mixed(path, hot_keys, cold_keys, first)
    kinds.cold(path, cold_keys, first)
    local cold, shares = request, compute_shares(tonumber(hot_keys))
    local hot, count = {}, 0
    for number = 1, #shares do
        hot[number] = wrk.format("GET", path .. string.format("hot:%012d", number - 1))
    end
    math.randomseed(os.time())
    function request()
        count = count + 1
        return count % cold_every == 0 and cold() or hot[draw(shares)]
    end
end

-- The only thread. Its requests have a Lua state of their own, apart from that of `done`.
local thread

function setup(only_thread)
    thread = only_thread
end

function init(arguments)
    connections = tonumber(arguments[1])
    kinds[arguments[2]](unpack(arguments, 3))
end

-- Returns the measured latencies: ascending microseconds, the count of each, and the total count.
--
-- wrk corrects its latencies for requests that it could not send while it waited. For each latency it
-- adds samples that are shorter by one `interval`, by two, and so on. For pipelined requests these
-- samples are wrong and spoil the percentiles. No samples are added to the longest latency, so this
-- function removes them from there downwards.
local function remove_correction(latency, interval)
    local times, counts, total = {}, {}, 0
    for index = 1, #latency do
        times[index], counts[index] = latency(index)
    end
    local index_of = {}
    for index, time in ipairs(times) do
        index_of[time] = index
    end
    for index = #times, 1, -1 do
        local count = counts[index]
        total = total + count
        for shorter = times[index] - interval, interval + 1, -interval do
            if count > 0 and index_of[shorter] then
                counts[index_of[shorter]] = counts[index_of[shorter]] - count
            end
        end
    end
    return times, counts, total
end

function done(summary, latency)
    local per_connection = math.max(1, math.floor(summary.requests / thread:get("connections")))
    local interval = math.floor(summary.duration / per_connection)
    local times, counts, total = remove_correction(latency, interval)
    local index, sum = 0, 0
    -- Must be called with ascending shares.
    local function advance_to(share)
        while sum < share * total do
            index = index + 1
            sum = sum + counts[index]
        end
        return times[index] / 1e6
    end
    local errors = summary.errors
    print(string.format('RESULT {"requests":%d,"seconds":%.6f,"timed":%d,"socket_errors":%d,"bad_statuses":%d,' ..
        '"p50":%.6f,"p99":%.6f,"p999":%.6f}', summary.requests, summary.duration / 1e6, total,
        errors.connect + errors.read + errors.write + errors.timeout, errors.status,
        advance_to(0.5), advance_to(0.99), advance_to(0.999)))
end
